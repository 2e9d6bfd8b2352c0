package main

import (
	"fmt"
	"strconv"
)

// The counters whose events a producer writes.
const counters = 8

// counterEvents gives keys and payloads as the source's table of counters would have them: so many events of each.
func counterEvents(each int, write func(key, payload []byte)) {
	for n := range each {
		for id := range counters {
			payload := fmt.Sprintf(`{"op":"u","after":{"id":%d,"n":%d}}`, id, n)
			write([]byte(strconv.Itoa(id)), []byte(payload))
		}
	}
}
