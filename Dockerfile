# CSKD on a processor. Two images, from the repository's root:
#   docker build --target edge  -t cskd-edge  .     runs exported files: no torch, no mmdet
#   docker build --target train -t cskd-train .     trains and exports
# PIP_ARGS goes to pip, as in the Makefile: an --extra-index-url for PyTorch's builds without CUDA, for example.
FROM python:3.11-slim AS wheels
WORKDIR /source
COPY packages packages
RUN pip wheel --no-deps --wheel-dir /wheels packages/cskd-core packages/cskd-data packages/cskd-train packages/cskd-deploy

FROM python:3.11-slim AS train
ARG PIP_ARGS=
COPY requirements/constraints.txt /
COPY --from=wheels /wheels /wheels
RUN pip install --no-cache-dir -c /constraints.txt "setuptools<81" wheel numpy opencv-python-headless
RUN pip install --no-cache-dir -c /constraints.txt --use-pep517 --no-build-isolation mmcv-full
RUN pip install --no-cache-dir -c /constraints.txt $PIP_ARGS /wheels/cskd_core-*.whl /wheels/cskd_data-*.whl /wheels/cskd_train-*.whl "$(echo /wheels/cskd_deploy-*.whl)[ort,export]"
WORKDIR /work
ENTRYPOINT ["cskd-train"]

FROM python:3.11-slim AS edge
COPY requirements/constraints.txt /
COPY --from=wheels /wheels /wheels
RUN pip install --no-cache-dir -c /constraints.txt /wheels/cskd_data-*.whl "$(echo /wheels/cskd_deploy-*.whl)[ort]"
WORKDIR /work
ENTRYPOINT ["cskd-deploy"]
