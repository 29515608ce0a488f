# Everything a fresh machine needs is installed by these targets; `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: test
test: ## Install what the tests need and run them all; what CI runs
	tests/setup.sh
	tests/run.sh

.PHONY: test-fire
test-fire: ## Delivery with 30 cuts, kills and restarts of each kind, figures shown; `make test` has 3
	tests/setup.sh
	cargo build --locked --workspace --bins
	OCELLI_FIRE_ROUNDS=30 cargo test --locked --workspace --test delivery --test fire -- --nocapture

.PHONY: lint
lint: ## Formatting and lints
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

.PHONY: audit
audit: ## Advisories, licences and sources of all dependencies (needs cargo-deny and the network)
	cargo deny check

.PHONY: test-v4l2
test-v4l2: ## Capture from the kernel's vivid driver in a virtual machine (Debian on x86_64; installs QEMU)
	tests/v4l2/run.sh

.PHONY: test-boards test-boards-agent test-boards-firmware
test-boards: test-boards-agent test-boards-firmware ## Emulated ARM boards: camera, GPIO, watchdog, power cuts, bad input; firmware images from card to result; packages on Debian (installs QEMU; an hour and a half, with -j2 half of it)
# What is shipped is tried: the binaries of `make cross`.
test-boards-agent test-boards-firmware: export OCELLI_BOARDS_PROFILE ?= release
test-boards-agent:
	tests/boards/run.sh
test-boards-firmware:
	firmware/test.sh

.PHONY: firmware
firmware: ## The image of a board: BOARD=nanopi-neo make firmware (docs/firmware.md)
	firmware/build.sh $(BOARD)

.PHONY: test-parity
test-parity: ## Compare with onnxruntime and Pillow on the labelled pictures in OCELLI_DATA (Python; about ten minutes)
	tests/parity/run.sh

.PHONY: test-vnni
test-vnni: ## The int8 kernels for VNNI on processors that Bochs emulates (Debian on x86_64; builds Bochs, then ten minutes)
	tests/vnni/run.sh

.PHONY: test-npu
test-npu: ## Plug-ins against vendors' libraries fetched from PyPI by name: ONNX Runtime, Qualcomm's simulator, Rockchip's toolkit (1 GB installed)
	tests/setup.sh build
	tests/npu/run.sh

.PHONY: cross
cross: ## Static binaries for ARM (aarch64, armv7), release profile, held against their size limits
	cross/setup.sh
	cross/size.sh --check

.PHONY: test-cross
test-cross: ## The ARM builds under QEMU's user emulator; `make test` has aarch64
	tests/setup.sh
	cross/setup.sh
	cross/test.sh aarch64-unknown-linux-musl
	cross/test.sh armv7-unknown-linux-musleabihf

.PHONY: icount
icount: ## Count ARM instructions per inference and frame, beside an all-speed build; writes docs/performance.md
	cross/icount.sh

.PHONY: demo
demo: ## Broker, agent and receiver on this machine: real pictures, real model, results over MQTT, boxes in demo-out/
	tests/setup.sh build
	cargo build --locked --workspace --bins
	"$${CARGO_TARGET_DIR:-target}/debug/ocelctl" demo

.PHONY: test-tuf
test-tuf: ## Run the public TUF conformance suite: TUF_CONFORMANCE=CHECKOUT (needs python3, faketime and the network)
	crates/tuf/conformance.sh

.PHONY: test-updates
test-updates: ## Model updates with 200 kills, 50 devices, a large model, python-tuf and fuzzing (an hour); `make test` has less
	tests/setup.sh
	tests/updates.sh

.PHONY: bench-frame
bench-frame: ## The frame path without inference beside OpenCV, on one core (needs python3 with venv and the network)
	benches/frame_path.sh

.PHONY: bench-stages
bench-stages: ## What each stage of a frame costs with the detector, from the camera to the MQTT connection
	cargo run --locked --release --quiet -p ocelli -- bench models/nanodet-g-coco

.PHONY: bench-peers
bench-peers: ## Eight int8 nets beside onnxruntime and OpenVINO on one core; writes docs/performance.md (needs python3 with venv and the network)
	benches/peers.sh

.PHONY: footprint
footprint: ## Size of the device binary and memory with each model of the zoo
	benches/footprint.sh
