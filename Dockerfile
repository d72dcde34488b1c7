# Two images: `server` (the default) holds the static binary and nothing else; `setup` is Envoy's image with the binary and a shell,
# for the one-shot services of docker-compose.yaml.

FROM golang:1.26.8 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY cmd cmd
COPY internal internal
COPY pkg pkg
ARG VERSION=dev
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /out/sds-server ./cmd/sds-server
RUN mkdir /out/empty

FROM envoyproxy/envoy:v1.40.0 AS setup
COPY --from=build /out/sds-server /usr/local/bin/sds-server
RUN install -d -o 65532 -g 65532 -m 0700 /var/lib/sds-server \
 && install -d -o 65532 -g 65532 -m 0755 /run/sds-server /run/sds-server/sds /run/sds-server/admin /identities
USER 65532:65532
ENTRYPOINT ["/bin/sh", "-euc"]

FROM scratch AS server
# A named volume takes its owner from the directory in the image.
COPY --from=build --chown=65532:65532 /out/empty /var/lib/sds-server
COPY --from=build --chown=65532:65532 /out/empty /run/sds-server
COPY --from=build --chown=65532:65532 /out/empty /run/sds-server/sds
COPY --from=build --chown=65532:65532 /out/empty /run/sds-server/admin
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/sds-server /usr/local/bin/sds-server
USER 65532:65532
EXPOSE 18000 18001 18002
ENTRYPOINT ["/usr/local/bin/sds-server"]
CMD ["serve"]
