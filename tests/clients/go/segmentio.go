package main

import (
	"context"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"
)

// segmentio is Segment's kafka-go. Its Reader does not tell which partitions it has, so that its members are made of
// what the Reader is made of: a ConsumerGroup, and a Reader for each partition.
type segmentio struct{}

func (segmentio) module() string { return "github.com/segmentio/kafka-go" }

func (segmentio) list(bootstrap string) {
	client := kafka.Client{Addr: kafka.TCP(bootstrap)}
	metadata := must(client.Metadata(context.Background(), &kafka.MetadataRequest{}))
	for _, topic := range metadata.Topics {
		check(topic.Error)
		sayTopic(topic.Name, len(topic.Partitions))
	}
}

func (segmentio) reader(bootstrap, topic string, partition int) *kafka.Reader {
	return kafka.NewReader(kafka.ReaderConfig{
		Brokers:   []string{bootstrap},
		Topic:     topic,
		Partition: partition,
		MaxWait:   fetchMaxWait,
	})
}

func (s segmentio) read(bootstrap, topic, start string) {
	ctx := context.Background()
	found := offsets{}
	for _, partition := range must(kafka.LookupPartitions(ctx, "tcp", bootstrap, topic)) {
		reader := s.reader(bootstrap, topic, partition.ID)
		switch start {
		case "beginning":
			check(reader.SetOffset(kafka.FirstOffset))
		case "end":
			leader := must(kafka.DialPartition(ctx, "tcp", bootstrap, partition))
			check(reader.SetOffset(must(leader.ReadLastOffset())))
		default:
			milliseconds := must(strconv.ParseInt(start, 10, 64))
			check(reader.SetOffsetAt(ctx, time.UnixMilli(milliseconds)))
		}
		found[int32(partition.ID)] = reader.Offset()
		go func() {
			for {
				saySegmentioRecord(must(reader.ReadMessage(ctx)))
			}
		}()
	}
	sayGained(found)
	select {}
}

func (s segmentio) group(ctx context.Context, bootstrap, topic, name string, async bool) {
	group := must(kafka.NewConsumerGroup(kafka.ConsumerGroupConfig{
		ID:                name,
		Brokers:           []string{bootstrap},
		Topics:            []string{topic},
		SessionTimeout:    sessionTimeout,
		HeartbeatInterval: heartbeatInterval,
		JoinGroupBackoff:  fetchMaxWait,
		StartOffset:       kafka.FirstOffset,
	}))
	for ctx.Err() == nil {
		generation, err := group.Next(ctx)
		if err != nil {
			// The broker is away, or it goes on in the next generation.
			continue
		}
		for _, assignment := range generation.Assignments[topic] {
			sayGained(offsets{int32(assignment.ID): assignment.Offset})
			generation.Start(func(ended context.Context) {
				reader := s.reader(bootstrap, topic, assignment.ID)
				consume(ended, reader, generation, assignment, async)
				check(reader.Close())
			})
		}
	}
	// Ends the generation before it leaves.
	check(group.Close())
}

// consume reads a partition until the generation ends. It commits each record, or from time to time as a Reader with a
// CommitInterval does.
func consume(ended context.Context, reader *kafka.Reader, generation *kafka.Generation, from kafka.PartitionAssignment, async bool) {
	topic, partition := reader.Config().Topic, reader.Config().Partition
	check(reader.SetOffset(from.Offset))
	committed := from.Offset
	commit := func() {
		next := reader.Offset()
		if next <= committed {
			return
		}
		if generation.CommitOffsets(map[string]map[int]int64{topic: {partition: next}}) == nil {
			sayCommitted(offsets{int32(partition): next})
			committed = next
		}
	}
	interval := time.Duration(0)
	if async {
		interval = 200 * time.Millisecond
	}
	due := time.Now()
	for {
		wait, stop := context.WithTimeout(ended, 200*time.Millisecond)
		record, err := reader.ReadMessage(wait)
		stop()
		if err == nil {
			saySegmentioRecord(record)
		}
		if ended.Err() != nil {
			break
		}
		if time.Since(due) >= interval {
			commit()
			due = time.Now()
		}
	}
	// What was printed so far is committed before another member gets it.
	commit()
	sayLost(int32(partition))
}

// It is never idempotent.
func (segmentio) write(bootstrap, topic, codec string, each int) {
	producer := kafka.Writer{
		Addr:                   kafka.TCP(bootstrap),
		Topic:                  topic,
		Balancer:               &kafka.Hash{},
		RequiredAcks:           kafka.RequireAll,
		BatchTimeout:           10 * time.Millisecond,
		AllowAutoTopicCreation: true,
	}
	check(producer.Compression.UnmarshalText([]byte(codec)))
	var records []kafka.Message
	counterEvents(each, func(key, payload []byte) {
		records = append(records, kafka.Message{Key: key, Value: payload})
	})
	check(producer.WriteMessages(context.Background(), records...))
	check(producer.Close())
}

func saySegmentioRecord(record kafka.Message) {
	sayRecord(int32(record.Partition), record.Offset, record.Time, record.Key, record.Value)
}
