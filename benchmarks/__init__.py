"""The benchmarks: each module here with a `main(arguments)` measures one thing and prints what it measured."""
