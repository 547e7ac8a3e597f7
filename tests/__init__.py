"""The tests: unit/ mirrors the packages, contract/ runs every engine and registry, system/ runs real processes."""
