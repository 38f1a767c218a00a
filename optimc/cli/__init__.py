"""The commands of `optimc`, a package each: bench and compare.

The optimizers know nothing of them, and `import optimc` does not import them.
"""
