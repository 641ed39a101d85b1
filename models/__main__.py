"""Lists the models: `python -m models`."""

import ast
import pathlib


def listed() -> list[tuple[str, str]]:
    """(name, what it is) of each model, by name; the second is the head of its package."""
    found = []
    for main in sorted(pathlib.Path(__file__).parent.glob("*/__main__.py")):
        head = ast.get_docstring(ast.parse(main.with_name("__init__.py").read_text())) or ""
        found.append((main.parent.name, head.partition("\n")[0]))
    return found


def main() -> None:
    """Prints a line for each model."""
    models = listed()
    width = max(len(name) for name, _ in models)
    for name, about in models:
        print(f"{name:<{width}}  {about}")
    print("\npython -m models.NAME trains one; --help lists its flags")


if __name__ == "__main__":
    main()
