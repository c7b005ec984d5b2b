# docker build -t polarice .                                       computes on CPUs
# docker build -t polarice:cuda --build-arg TORCH=cu130 .          computes on NVIDIA GPUs, too
# docker run --rm -u "$(id -u):$(id -g)" -v "$PWD:/work" --shm-size=1g polarice class2d particles.star --o Class2D/job001
FROM python:3.11.11-slim-bookworm AS build
ARG TORCH=cpu
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /source
COPY constraints.txt ./
RUN python -m venv /opt/polarice \
 && /opt/polarice/bin/pip install --no-cache-dir -c constraints.txt \
      --index-url "https://download.pytorch.org/whl/${TORCH}" --extra-index-url https://pypi.org/simple torch
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN if [ "$TORCH" = cpu ]; then extras=mpi; else extras=mpi,gpu; fi \
 && /opt/polarice/bin/pip install --no-cache-dir -c constraints.txt ".[$extras]"

FROM python:3.11.11-slim-bookworm
ARG TORCH=cpu
# Triton compiles the fused kernel of GPUs with a C compiler.
# hadolint ignore=DL3008
RUN if [ "$TORCH" != cpu ]; then \
      apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=build /opt/polarice /opt/polarice
ENV PATH=/opt/polarice/bin:$PATH HOME=/tmp
WORKDIR /work
ENTRYPOINT ["polarice"]
CMD ["--help"]
