"""The arithmetic of codecs: blocks, rounding, selection, scattering, random strata."""
