# Two images of the page and the commands: `cuda` for an NVIDIA GPU, `cpu` for any machine. docs/deploy.md says how to run them.
#
#     docker build --target cpu --tag sdsedit:cpu .
#     docker build --target cuda --tag sdsedit:cuda .
#
# Every RUN is a script of docker/, and tests/test_docker.py follows the instructions of the CPU image without Docker.
# The base images are arguments, so that a site can pin them by digest: --build-arg PYTHON_IMAGE=python@sha256:...
ARG PYTHON_IMAGE=python:3.12-slim-trixie
# For building only. Its CUDA (13.0) must be that of PyTorch's wheels, and its Python (3.12) that of the image above.
ARG CUDA_IMAGE=nvidia/cuda:13.0.2-devel-ubuntu24.04

FROM ${PYTHON_IMAGE} AS python
ENV SDSEDIT_HOME=/opt/sdsedit \
    PATH=/opt/sdsedit/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY docker/ docker/
COPY constraints.txt pyproject.toml ./

# The packages first: they change less often than the code, and so this layer is kept.
FROM python AS cpu-packages
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN ["/src/docker/packages.sh", "web", "mcp"]

FROM cpu-packages AS cpu-build
COPY . .
RUN ["/src/docker/install.sh"]

# gsplat compiles its kernels when it is installed from source; what comes out is a wheel.
FROM ${CUDA_IMAGE} AS gsplat
ENV SDSEDIT_WHEELS=/wheels \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
# Ampere, Ada and Hopper, and newer ones through PTX; name only your own for a quicker build.
ARG TORCH_CUDA_ARCH_LIST="8.0;8.6;8.9;9.0+PTX"
ARG MAX_JOBS=4
WORKDIR /src
COPY docker/ docker/
RUN ["/src/docker/system.sh", "python3-dev", "python3-venv", "ninja-build"]
COPY constraints.txt ./
RUN ["/src/docker/gsplat.sh"]

FROM python AS cuda-packages
COPY --from=gsplat /wheels /wheels
ENV PIP_FIND_LINKS=/wheels
RUN ["/src/docker/packages.sh", "web", "mcp", "cuda"]

FROM cuda-packages AS cuda-build
COPY . .
RUN ["/src/docker/install.sh"]

# What both images are at run time: the user, where things are kept, how it starts, how it is asked for its health.
FROM ${PYTHON_IMAGE} AS runtime
# HOME and the caches lie on the data volume, since the image itself may be read-only. The model's volume is written to
# only by who fetches a model.
ENV SDSEDIT_HOME=/opt/sdsedit \
    PATH=/opt/sdsedit/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/models \
    HF_HUB_OFFLINE=1 \
    HOME=/data \
    XDG_DATA_HOME=/data \
    XDG_CACHE_HOME=/data/cache \
    NUMBA_CACHE_DIR=/data/cache/numba \
    TRITON_CACHE_DIR=/data/cache/triton \
    PORT=7860
COPY docker/ /opt/sdsedit/docker/
RUN ["/opt/sdsedit/docker/user.sh"]
VOLUME ["/models", "/data"]
WORKDIR /data
EXPOSE 7860
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "/opt/sdsedit/docker/health.py"]
ENTRYPOINT ["/opt/sdsedit/docker/start.sh"]

FROM runtime AS cuda
# The compiler is for Triton, which builds the launcher of a kernel where it runs. The driver comes from the host.
RUN ["/opt/sdsedit/docker/system.sh", "gcc", "libc6-dev"]
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=cuda-build /opt/sdsedit /opt/sdsedit
USER 1000:1000

# Last, so that it is what a build without --target makes.
FROM runtime AS cpu
COPY --from=cpu-build /opt/sdsedit /opt/sdsedit
USER 1000:1000
