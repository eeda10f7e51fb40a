.PHONY: all
all:
	CGO_ENABLED=0 go build -trimpath -o bin/vic ./cmd/vic
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/tether ./cmd/tether
