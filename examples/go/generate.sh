#!/bin/sh
# Generates millracev1/ from proto/, with protoc from the PATH or whatever PROTOC names.
set -eu
cd "$(dirname "$0")"
go build -o target/ google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
module=example.com/subscribe
package=$module/millracev1
files="millrace/v1/change.proto millrace/v1/subscribe.proto"
where=
for file in $files; do where="$where,M$file=$package"; done
# shellcheck disable=SC2086 # each is several words
PATH="$PWD/target:$PATH" ${PROTOC:-protoc} -I ../../proto \
  --go_out=. --go_opt="module=$module$where" --go-grpc_out=. --go-grpc_opt="module=$module$where" $files
