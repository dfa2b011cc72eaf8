"""The catalog that comes with the package: machines and links as TOML files, each figure with its source."""
