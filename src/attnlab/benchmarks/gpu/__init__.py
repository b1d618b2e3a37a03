"""What `make gpu` measures, in stages: see docs/gpu.md.

A stage is a module with a TITLE, `work(plan)`, a function without arguments for each row by the
row's name, and `page(rows, plan)`, lines of Markdown.
"""
