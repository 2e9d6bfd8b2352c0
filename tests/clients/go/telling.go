package main

import (
	"encoding/json"
	"log"
	"maps"
	"os"
	"sync"
	"time"
)

// offsets are those of partitions.
type offsets map[int32]int64

var (
	// Several goroutines speak.
	speaking sync.Mutex
	holding  = offsets{}
)

// sayTopic is for a topic that was listed.
func sayTopic(name string, partitions int) {
	say(map[string]any{"topic": name, "partitions": partitions})
}

// sayGained tells the client's assignment when partitions have come to it, to be read from these offsets, or -1 where it
// does not tell.
func sayGained(partitions offsets) {
	speaking.Lock()
	defer speaking.Unlock()
	maps.Copy(holding, partitions)
	write(map[string]any{"assigned": holding})
}

// sayLost tells the client's assignment when partitions have gone from it.
func sayLost(partitions ...int32) {
	speaking.Lock()
	defer speaking.Unlock()
	for _, partition := range partitions {
		delete(holding, partition)
	}
	write(map[string]any{"assigned": holding})
}

// sayCommitted is for a commit that the broker has answered.
func sayCommitted(committed offsets) {
	say(map[string]any{"committed": committed})
}

// sayRecord is for a record that was delivered.
func sayRecord(partition int32, offset int64, timestamp time.Time, key, payload []byte) {
	say(map[string]any{
		"partition": partition,
		"offset":    offset,
		"ts":        timestamp.UnixMilli(),
		"key":       string(key),
		"payload":   string(payload),
	})
}

func say(words any) {
	speaking.Lock()
	defer speaking.Unlock()
	write(words)
}

// write writes a line at once, so that nothing said is lost in a crash.
func write(words any) {
	line, err := json.Marshal(words)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := os.Stdout.Write(append(line, '\n')); err != nil {
		log.Fatal(err)
	}
}
