"""`python -m tests.gpu FOLDER`: all checks and measurements that need a GPU, in one command of a few minutes.

It needs torch, transformers, accelerate, pyarrow, numpy and pytest. Ray, Hydra, pydantic and LangChain may be missing.
"""
