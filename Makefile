# make          build bin/vic, bin/tether and bin/vic-machine
# make vic-machine-all  build bin/vic-machine for macOS and Windows as well
# make demo     install what is missing, then pull and run an image with the docker client
# make kernel   build a kernel for container VMs, which then boot a second sooner; a quarter of an hour
# make appliance  build bin/vic-appliance.iso, from which the VM of a virtual container host on vSphere boots
# make test     install what is missing, then run everything that is tested
# make check    gofmt, go vet and the race detector
# make nightly  run what takes too long for make test: a VCH from its installation on, power cuts of an appliance, a vCenter that is away for a minute
# make fuzz     fuzz every parser for a while
# make suites   run the test suites of moby and docker/cli, which takes hours, and write docs/suites.md
# make bench    measure each package, each stage of a pull, and pulls beside other engines
# make clean    remove what make made

version := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# Debian packages: to run container VMs; for the demo; to judge the tests.
run_packages  := qemu-system-x86 linux-image-cloud-amd64
iso_packages := linux-image-cloud-amd64 isolinux syslinux-common ca-certificates
kernel_source := linux-source-6.1
kernel_packages := $(kernel_source) gcc make bc flex bison libelf-dev xz-utils lz4
demo_packages := $(run_packages) docker-registry debootstrap
test_packages := $(demo_packages) qemu-utils e2fsprogs ca-certificates fdisk skopeo umoci buildah busybox-static \
	attr acl libcap2-bin isolinux syslinux-common xorriso tar fuse3 wrk redis-tools postgresql-client-15 openssl \
	docker-compose python3-docker wget containerd runc iptables iproute2 iputils-ping bind9-dnsutils curl tcpdump ethtool python3 libvmdk-utils open-vm-tools libtelnet-utils
bench_packages := debootstrap podman e2fsprogs zstd tar
# Debian's containerd cannot unpack layers side by side.
bench_containerd := v2.4.2
bench_hcsshim := v0.13.0

# Executions of each fuzz target in make test: a few seconds. A time would now and then fail with
# "context deadline exceeded", which is the go command's own end of fuzzing and no finding.
fuzz_runs := 4000x

# Tests in which one goroutine does all, or a process is killed: the race detector makes them four times as long.
one_goroutine := Killed|PowerCut|Bomb|ApplyTo|CoalesceSame|PullDeep|VolumeFaults|VolumeLargest

# Tests in which govmomi's simulator writes to a datastore's list of VMs while a task of its own reads that.
simulator_races := VolumesAtOnce

# Programs and tests are built alike, so that packages are compiled once for both, and once for all checkouts.
export CGO_ENABLED := 0
export GOFLAGS := $(GOFLAGS) -trimpath

.PHONY: all vic-machine-all appliance demo kernel test nightly check fuzz suites bench clean
all:
	go build -ldflags '-s -w' -o bin/tether ./cmd/tether
	go build -ldflags '-X main.version=$(version)' -o bin/vic ./cmd/vic
	go build -ldflags '-s -w -X main.version=$(version)' -o bin/vic-machine ./cmd/vic-machine

vic-machine-all: all
	GOOS=darwin GOARCH=arm64 go build -ldflags '-s -w -X main.version=$(version)' -o bin/vic-machine-darwin ./cmd/vic-machine
	GOOS=windows GOARCH=amd64 go build -ldflags '-s -w -X main.version=$(version)' -o bin/vic-machine-windows.exe ./cmd/vic-machine

# The programs in it are without symbols, since they stay in memory.
appliance:
	@$(call install,$(iso_packages))
	@$(MAKE) --no-print-directory all
	go build -ldflags '-s -w' -o bin/appliance/init ./cmd/appliance
	go build -ldflags '-s -w -X main.version=$(version)' -o bin/appliance/vic ./cmd/vic
	bin/vic iso --appliance bin/appliance/init --vic bin/appliance/vic -o bin/vic-appliance.iso

demo:
	@$(call install,$(demo_packages)); $(docker_client)
	@$(MAKE) --no-print-directory all
	@go run ./cmd/demo

kernel:
	@$(call install,$(kernel_packages))
	@$(MAKE) --no-print-directory bin/kernel/vmlinuz

# Beside the kernel goes what is known of it as of an installed one. An option that did not come to be is an error.
bin/kernel/vmlinuz: containervm/boot/guest.config
	@dir=$$(mktemp -d) && trap 'rm -rf $$dir' EXIT && \
	tar xf /usr/src/$(kernel_source).tar.xz -C $$dir --strip-components 1 && \
	make -s -C $$dir KCONFIG_ALLCONFIG=$(CURDIR)/$< allnoconfig >/dev/null && \
	if grep '^CONFIG_' $< | grep -vxFf $$dir/.config; then echo 'make kernel: this Linux has these options not, or otherwise'; exit 1; fi && \
	make -s -C $$dir -j$$(nproc) bzImage >/dev/null && \
	mkdir -p $(@D) && cp $$dir/modules.builtin $(@D)/ && cp $$dir/.config $(@D)/config && : >$(@D)/modules.dep && : >$(@D)/modules.alias && \
	cp $$dir/arch/x86/boot/bzImage $@

# Three packages at a time: those that boot guests wait for them half of the time. The race detector on what speaks with govmomi's
# simulator is left to make check: the simulator's tasks race with each other now and then.
test:
	@$(call install,$(test_packages)); $(docker_client)
	@$(dockerd)
	@$(npm_judges)
	@$(govc)
	@$(MAKE) --no-print-directory all
	go vet ./...
	ORACLES=1 go test -vet=off -count=1 -timeout 40m -p 3 ./...
	CGO_ENABLED=1 ORACLES=1 go test -race -vet=off -count=1 -short -p 3 -skip '$(one_goroutine)' ./layerstore ./containervm ./fetch ./tether/wire ./api
	CGO_ENABLED=1 ORACLES=1 go test -race -vet=off -count=1 -run Concurrent ./vmdk ./layerstore/mount
	$(call fuzz_all,-test.fuzztime $(fuzz_runs) -test.fuzzminimizetime 0x -test.fuzzcachedir $$dir/$$pkg)

nightly:
	@$(call install,$(test_packages)); $(docker_client)
	@$(govc)
	@$(MAKE) --no-print-directory all
	NIGHTLY=1 ORACLES=1 go test -count=1 -timeout 60m -run 'PowerCut|Refused|Install' ./cmd/appliance
	NIGHTLY=1 ORACLES=1 go test -count=1 -timeout 60m -run 'ESXi|VSphereMinute' ./cmd/vic
	NIGHTLY=1 ORACLES=1 go test -count=1 -timeout 60m -run 'DockerVSphere/^stress$$' ./cmd/vic
	NIGHTLY=1 ORACLES=1 go test -count=1 -run 'HugeDirectory|HugeTree' ./diskfs
	ORACLES=1 go test -count=1 -timeout 60m -run '^TestKill$$' ./cmd/vic/acceptance -kills 100

check:
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo 'make check: run gofmt -w on these'; exit 1; }
	go vet ./...
	CGO_ENABLED=1 go test -race -short -skip '$(simulator_races)' ./...

fuzz:
	$(call fuzz_all,-test.fuzztime 2m -test.fuzzcachedir $$(go env GOCACHE)/fuzz/vic/$${pkg#./})

suites:
	@$(call install,$(demo_packages) busybox-static); $(docker_client)
	@$(dockerd)
	@$(MAKE) --no-print-directory all
	go run ./cmd/vic/compat/suites -document docs/suites.md

bench:
	@$(call install,$(bench_packages))
	@$(MAKE) --no-print-directory all
	go test -run '^$$' -bench . ./vmdk ./diskfs ./fetch ./layerstore ./layerstore/inflate ./tether/wire
	@test -x bin/peers/containerd || GOBIN=$(CURDIR)/bin/peers go install \
		github.com/containerd/containerd/v2/cmd/containerd@$(bench_containerd) github.com/containerd/containerd/v2/cmd/ctr@$(bench_containerd)
	@test -x bin/peers/tar2ext4 || { $(call go_install_in_module,github.com/Microsoft/hcsshim,$(bench_hcsshim),cmd/tar2ext4); }
	go run ./bench/figures
	go run ./bench/vsphere
	go run ./bench/vsphere -containers 1,10,100,400,1200

clean:
	rm -rf bin demo-store

# Installs the Debian packages that are missing.
define install
	missing=$$(for p in $(1); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
		echo "installing" $$missing; \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get update -qq && apt-get install -qq -y --no-install-recommends $$missing >/dev/null || exit 1; \
	fi
endef

# Builds a program into bin/peers whose module go install refuses, for it replaces others.
define go_install_in_module
	dir=$$(mktemp -d) && ( cd $$dir && go mod init peers && go get $(1)/$(3)@$(2) && \
		go build -o $(CURDIR)/bin/peers/ $(1)/$(3) ); status=$$?; rm -rf $$dir; exit $$status
endef

# The client alone is wanted; in Debian 12 it comes with the engine.
define docker_client
	command -v docker >/dev/null || { DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends docker.io >/dev/null; }
endef

# The engine to compare with and its client, taken out of their package, which would start it.
define dockerd
	test -x bin/peers/dockerd/docker -a -x bin/peers/dockerd/dockerd || { dir=$$(mktemp -d) && ( cd $$dir && apt-get download -qq docker.io 2>/dev/null && dpkg-deb -x docker.io*.deb . ) && \
		mkdir -p bin/peers/dockerd && cp $$dir/usr/sbin/dockerd $$dir/usr/sbin/docker-proxy $$dir/usr/bin/docker bin/peers/dockerd/; status=$$?; rm -rf $$dir; exit $$status; }
endef

# VMware's command line, which judges the simulated vSphere. The module proxy has no newer one than this.
define govc
	test -x bin/peers/govc || GOBIN=$(CURDIR)/bin/peers go install github.com/vmware/govmomi/govc@v0.18.0
endef

# Clients of npm's that judge. Other Node.js packages than Debian's bring npm along.
define npm_judges
	command -v npm >/dev/null || { DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends nodejs npm >/dev/null; }; \
	test -d bin/peers/node_modules/testcontainers || { mkdir -p bin/peers && npm install --silent --no-audit --no-fund --prefix bin/peers dockerode@5 testcontainers@10 >/dev/null; }
endef

# Runs each fuzz target with these flags: one program a package, for each is linked in seconds. Coverage of our own packages guides: -fuzz
# would have all others compiled once more for it, Go's and govmomi's as well.
define fuzz_all
	@dir=$$(mktemp -d) && trap 'rm -rf $$dir' EXIT && \
	for pkg in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
		go test -c -vet=off -ldflags '-s -w' -gcflags 'vic/...=-d=libfuzzer' -o $$dir/fuzz $$pkg || exit 1; \
		for f in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]+' $$pkg/*_test.go | cut -d' ' -f2); do \
			echo "$$pkg $$f"; \
			( cd $$pkg && $$dir/fuzz -test.run '^$$' -test.fuzz "^$$f\$$" $(1) >$$dir/out 2>&1 ) || { cat $$dir/out; exit 1; }; \
		done; \
	done
endef
