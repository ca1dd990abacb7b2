"""Engines that run models with torch. Import this package before torch: it sets up torch's memory allocator."""

import os

# Segments that grow keep the GPU's memory in one piece. torch reads the variable when it first allocates on a GPU.
ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
if not any(name in os.environ for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")):
    os.environ.update(ALLOCATOR)
