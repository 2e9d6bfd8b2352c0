// Clients for Go in the story of the client tests: they print what they see as one JSON object a line, and judge nothing.
//
//	clients CLIENT version
//	clients CLIENT list  BOOTSTRAP
//	clients CLIENT read  BOOTSTRAP TOPIC beginning|end|MILLISECONDS    until it is killed
//	clients CLIENT group BOOTSTRAP TOPIC GROUP sync|async              until its standard input ends; then leaves
//	clients CLIENT write BOOTSTRAP TOPIC CODEC EVENTS                  so many events of each of eight counters
//	clients console look|edit BOOTSTRAP TOPIC GROUP                    what tools of administration ask and do
//
// tests/clients starts it and judges what it prints.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// A member that is lost is missed sooner than by default, and a test waits less.
const (
	sessionTimeout    = 6 * time.Second
	heartbeatInterval = 500 * time.Millisecond
	fetchMaxWait      = 100 * time.Millisecond
)

// client plays the parts that the command line names.
type client interface {
	// module is the path of its Go module.
	module() string
	list(bootstrap string)
	read(bootstrap, topic, start string)
	group(ctx context.Context, bootstrap, topic, name string, async bool)
	write(bootstrap, topic, codec string, each int)
}

var clients = map[string]client{
	"franz-go":           franz{},
	"franz-go-consumer":  franz{member: []kgo.Opt{kgo.ServerSideBalancer(), kgo.Balancers(kgo.StickyBalancer())}},
	"kafka-go":           segmentio{},
	"sarama":             ibm{},
	"sarama-cooperative": ibm{cooperative: true},
}

func main() {
	if len(os.Args) < 3 {
		log.Fatalf("usage: %s CLIENT version|list|read|group …", os.Args[0])
	}
	role, rest := os.Args[2], os.Args[3:]
	player, known := clients[os.Args[1]]
	switch {
	case os.Args[1] == "console" && role == "look" && len(rest) == 3:
		look(context.Background(), console(rest[0]), rest[1], rest[2])
	case os.Args[1] == "console" && role == "edit" && len(rest) == 3:
		edit(context.Background(), console(rest[0]), rest[1], rest[2])
	case known && role == "version" && len(rest) == 0:
		fmt.Println(version(player.module()))
	case known && role == "list" && len(rest) == 1:
		player.list(rest[0])
	case known && role == "read" && len(rest) == 3:
		player.read(rest[0], rest[1], rest[2])
	case known && role == "group" && len(rest) == 4:
		player.group(untilInputEnds(), rest[0], rest[1], rest[2], rest[3] == "async")
	case known && role == "write" && len(rest) == 4:
		player.write(rest[0], rest[1], rest[2], must(strconv.Atoi(rest[3])))
	default:
		log.Fatalf("unknown: %q", os.Args[1:])
	}
}

// version is that of a module that this program was built with.
func version(module string) string {
	build, _ := debug.ReadBuildInfo()
	for _, dependency := range build.Deps {
		if dependency.Path == module {
			return strings.TrimPrefix(dependency.Version, "v")
		}
	}
	log.Fatalf("built without %s", module)
	return ""
}

// untilInputEnds is done when the standard input ends.
func untilInputEnds() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	return ctx
}

// must is for what the tests rely on: the program dies, and says of what.
func must[T any](value T, err error) T {
	check(err)
	return value
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
