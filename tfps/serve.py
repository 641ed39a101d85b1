"""`python -m tfps.serve` serves the worker or parameter server that TF_CONFIG describes."""

from tfps.cluster.server import main, serve

__all__ = ["main", "serve"]

if __name__ == "__main__":
    main()
