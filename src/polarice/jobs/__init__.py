"""The commands, one module each, with SUMMARY, EXAMPLE, Params and run(params); `project/registry.py` lists them."""
