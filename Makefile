# `make help` lists what can be done here.

PG         ?= 15
CARGO      ?= cargo
SETUP      := deploy/setup-debian.sh
JAVA_DIR   := tests/clients/java
PYTHON_DIR := tests/clients/python
KAFKA_DIR  := tests/apache-kafka
NODE_DIR   := tests/clients/node
GO_DIR     := tests/clients/go
GO_EXAMPLE := examples/go

# For `make console-consumer`
BOOTSTRAP ?= 127.0.0.1:9092
TOPIC     ?= shop
# For `make fuzz`
SECONDS   ?= 60
# For `make bench`
BENCH     ?= ingest

.PHONY: help setup setup-clients build run test test-postgres test-clients test-clients-all test-tools test-judge test-large test-all fuzz lint lint-deploy compatibility fmt bench java python go node apache-kafka console-consumer clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what is missing to build and run (Debian packages; asks first)
	@$(SETUP)

setup-clients:
	@$(SETUP) --clients

build: ## build the release binary, target/release/millrace
	$(CARGO) build --release --locked

run: setup build ## see changes flow from a throwaway PostgreSQL, or from SOURCE=postgres://…
	@deploy/demo/run.sh

test: setup ## all tests that need PostgreSQL 15 and Rust alone
	$(CARGO) test --workspace --locked --no-fail-fast

test-postgres: setup ## the same tests with another PostgreSQL: PG=18
	deploy/fetch-postgres.sh $(PG)
	MILLRACE_TEST_PG=$(PG) MILLRACE_TEST_SECONDS=60 $(CARGO) test --workspace --locked --no-fail-fast

test-clients: setup-clients java python go node ## clients in groups: librdkafka, kcat, Java, Python, Go, Node, and the examples over gRPC
	$(CARGO) test --locked --test clients

test-clients-all: setup-clients java python go node apache-kafka ## every client, and what they do into docs/compatibility.md
	rm -rf target/compatibility
	$(CARGO) test --locked --test clients -- --include-ignored; passed=$$?; \
	  python3 tests/clients/compatibility.py target/compatibility docs/compatibility.md && exit $$passed

test-tools: setup-clients apache-kafka ## Apache Kafka's command-line tools
	$(CARGO) test --locked --test tools

test-judge: setup-clients apache-kafka ## every answer beside that of Apache Kafka's own broker
	$(CARGO) test --locked --test judge

test-large: setup ## rows of half a gigabyte up to a gigabyte: takes 8 GB of memory and some minutes
	$(CARGO) test --locked --test capture -- --ignored

test-all: test test-large test-clients-all test-tools test-judge lint-deploy ## every test, with PostgreSQL 15 and 18
	$(MAKE) test-postgres PG=18

fuzz: ## feed what reads bytes from outside with any bytes: SECONDS=60
	fuzz/run.sh $(SECONDS)

lint: ## formatting and clippy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features --locked -- -D warnings
	$(CARGO) clippy --all-features --test clients --test tools --test judge --locked -- -D warnings

lint-deploy: ## check what deploy/ has for containers, systemd, Kubernetes and Prometheus
	deploy/lint.sh

compatibility: ## write the table of APIs in docs/compatibility.md anew
	MILLRACE_WRITE_DOCS=1 $(CARGO) test --locked --lib the_page_of_compatibility

fmt: ## format the code
	$(CARGO) fmt --all

# `cargo run` alone does not build the consumer that `bench fetch` starts.
bench: setup ## compare with the least that could do the same: BENCH=ingest, latency, fetch or groups
	$(CARGO) build --release --locked --features bench
	$(CARGO) run --release --locked --features bench -- bench $(BENCH) $(ARGS)

java: $(JAVA_DIR)/target/built ## build the Java client's test programs

$(JAVA_DIR)/target/built: $(JAVA_DIR)/pom.xml $(shell find $(JAVA_DIR)/src -type f)
	mvn -B -q -f $(JAVA_DIR) compile
	@touch $@

python: $(PYTHON_DIR)/.venv/built ## install the Python clients' libraries

$(PYTHON_DIR)/.venv/built: $(PYTHON_DIR)/requirements.txt examples/python/requirements.txt
	python3 -m venv --clear $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check $(addprefix --requirement ,$^)
	@touch $@

go: $(GO_DIR)/target/clients $(GO_EXAMPLE)/target/subscribe ## build the Go clients' test program, and the Go example

$(GO_DIR)/target/clients: $(wildcard $(GO_DIR)/*.*)
	go build -C $(GO_DIR) -o target/clients .

$(GO_EXAMPLE)/target/subscribe: $(wildcard $(GO_EXAMPLE)/*.*) $(wildcard proto/millrace/v1/*.proto) $(PYTHON_DIR)/.venv/built
	PROTOC="$(CURDIR)/$(PYTHON_DIR)/.venv/bin/python -m grpc_tools.protoc" $(GO_EXAMPLE)/generate.sh
	go build -C $(GO_EXAMPLE) -o target/subscribe .

node: $(NODE_DIR)/node_modules/built ## install the Node clients' libraries, and the Node that they need

$(NODE_DIR)/node_modules/built: $(NODE_DIR)/package-lock.json
	npm ci --prefix $(NODE_DIR) --no-audit --no-fund --loglevel=error
	@touch $@

apache-kafka: $(KAFKA_DIR)/target/built ## fetch Apache Kafka's own broker and tools

$(KAFKA_DIR)/target/built: $(KAFKA_DIR)/pom.xml
	mvn -B -q -f $(KAFKA_DIR) package
	@touch $@

console-consumer: setup-clients java ## Java's console consumer: TOPIC=shop BOOTSTRAP=127.0.0.1:9092
	@java -cp '$(JAVA_DIR)/target/classes:$(JAVA_DIR)/target/console/*' org.apache.kafka.tools.consumer.ConsoleConsumer \
	  --bootstrap-server $(BOOTSTRAP) --topic $(TOPIC) --from-beginning $(ARGS)

clean: ## remove what was built (never data: millrace-data stays)
	$(CARGO) clean
	rm -rf $(JAVA_DIR)/target $(KAFKA_DIR)/target $(PYTHON_DIR)/.venv $(NODE_DIR)/node_modules $(GO_DIR)/target $(GO_EXAMPLE)/target $(GO_EXAMPLE)/millracev1
