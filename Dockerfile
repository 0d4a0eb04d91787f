# forge-conformance as an image; docs/scripts.md says how to use it.
FROM python:3.12-slim

COPY pyproject.toml constraints.txt README.md LICENSE /source/
COPY spec /source/spec
COPY forge_ref /source/forge_ref
COPY tests/conformance /source/tests/conformance
COPY tests/distributed /source/tests/distributed
COPY fixtures /source/fixtures

# The index of PyTorch has the build for CPUs, which has no gigabytes of CUDA.
RUN pip install --no-cache-dir --constraint /source/constraints.txt \
      --extra-index-url https://download.pytorch.org/whl/cpu /source \
    && rm -r /source

WORKDIR /work
ENTRYPOINT ["forge-conformance"]
