# The suite on a CPU:
#   docker build --build-arg COMMIT=$(git rev-parse HEAD) -t sdpo-bench .
#   docker run --rm -v "$PWD/runs:/home/user/runs" sdpo-bench train --method ddpo_dense
FROM python:3.11-slim
ARG COMMIT=""
# Records name the commit; the image has no .git.
ENV SDPO_BENCH_COMMIT=$COMMIT
COPY . /suite
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
    -c /suite/constraints.txt -e /suite/kernels -e /suite
RUN useradd --create-home --uid 1000 user && mkdir /home/user/runs && chown user /home/user/runs
USER 1000
WORKDIR /home/user
ENTRYPOINT ["sdpo-bench"]
CMD ["--help"]
