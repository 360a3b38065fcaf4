# qscape in a container. Build for the CPU, or for NVIDIA with an extra:
#
#     docker build -t qscape .
#     docker build -t qscape:cuda12 --build-arg EXTRAS=report,cuda12 .
#     docker run --rm -v "$PWD/runs:/runs" qscape train td3 --env Pendulum-v1 --steps 3000
#
# With --gpus all, the second image uses the GPU: the wheels bring CUDA's libraries, the host its driver.
FROM python:3.12-slim

ARG EXTRAS=report

# MuJoCo draws without a screen through EGL or OSMesa.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libegl1 libgl1 libosmesa6 \
    && rm -rf /var/lib/apt/lists/*

COPY . /source
RUN pip install --no-cache-dir "/source[${EXTRAS}]" && rm -r /source

RUN useradd --create-home --uid 1000 user && install -d -o user /runs
USER user
WORKDIR /
ENTRYPOINT ["qscape"]
CMD ["--help"]
