package main

import (
	"context"
	"strconv"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// franz is franz-go. Its default balancer is cooperative-sticky.
type franz struct {
	// What a member has beyond the default, such as the consumer protocol.
	member []kgo.Opt
}

func (franz) module() string { return "github.com/twmb/franz-go" }

func (franz) connect(bootstrap string, more ...kgo.Opt) *kgo.Client {
	return must(kgo.NewClient(append(more, kgo.SeedBrokers(bootstrap), kgo.FetchMaxWait(fetchMaxWait))...))
}

func (f franz) list(bootstrap string) {
	for _, topic := range must(kadm.NewClient(f.connect(bootstrap)).ListTopics(context.Background())) {
		sayTopic(topic.Topic, len(topic.Partitions))
	}
}

func (f franz) read(bootstrap, topic, start string) {
	ctx := context.Background()
	ends, known := must(kadm.NewClient(f.connect(bootstrap)).ListEndOffsets(ctx, topic))[topic]
	if !known {
		check(kerr.UnknownTopicOrPartition)
	}
	places := make(map[int32]kgo.Offset)
	found := offsets{}
	for partition, end := range ends {
		check(end.Err)
		switch start {
		case "beginning":
			places[partition] = kgo.NewOffset().AtStart()
		case "end":
			places[partition] = kgo.NewOffset().At(end.Offset)
		default:
			places[partition] = kgo.NewOffset().AfterMilli(must(strconv.ParseInt(start, 10, 64)))
		}
		found[partition] = places[partition].EpochOffset().Offset
	}
	reader := f.connect(bootstrap, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: places}))
	sayGained(found)
	for {
		reader.PollFetches(ctx).EachRecord(sayFranzRecord)
	}
}

func (f franz) group(ctx context.Context, bootstrap, topic, name string, async bool) {
	member := f.connect(bootstrap, append(f.member,
		kgo.ConsumerGroup(name),
		kgo.ConsumeTopics(topic),
		kgo.DisableAutoCommit(),
		// What was polled has been printed before a partition goes.
		kgo.BlockRebalanceOnPoll(),
		kgo.SessionTimeout(sessionTimeout),
		kgo.HeartbeatInterval(heartbeatInterval),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, gained map[string][]int32) {
			places := offsets{}
			for _, partition := range gained[topic] {
				places[partition] = -1
			}
			sayGained(places)
		}),
		kgo.OnPartitionsRevoked(func(ctx context.Context, member *kgo.Client, revoked map[string][]int32) {
			// What was printed so far is committed before another member gets it.
			member.CommitOffsetsSync(ctx, member.UncommittedOffsets(), sayFranzCommit)
			sayLost(revoked[topic]...)
		}),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, lost map[string][]int32) {
			sayLost(lost[topic]...)
		}),
	)...)
	for ctx.Err() == nil {
		fetches := member.PollRecords(ctx, 20)
		fetches.EachRecord(sayFranzRecord)
		if async {
			member.CommitOffsets(ctx, member.UncommittedOffsets(), sayFranzCommit)
		} else {
			member.CommitOffsetsSync(ctx, member.UncommittedOffsets(), sayFranzCommit)
		}
		member.AllowRebalance()
	}
	// Has everything revoked before it leaves.
	member.CloseAllowingRebalance()
}

var franzCodecs = map[string]kgo.CompressionCodec{
	"none":   kgo.NoCompression(),
	"gzip":   kgo.GzipCompression(),
	"snappy": kgo.SnappyCompression(),
	"lz4":    kgo.Lz4Compression(),
	"zstd":   kgo.ZstdCompression(),
}

// It is idempotent by default.
func (f franz) write(bootstrap, topic, codec string, each int) {
	ctx := context.Background()
	producer := f.connect(bootstrap, kgo.AllowAutoTopicCreation(), kgo.ProducerBatchCompression(franzCodecs[codec]))
	counterEvents(each, func(key, payload []byte) {
		record := &kgo.Record{Topic: topic, Key: key, Value: payload}
		producer.Produce(ctx, record, func(_ *kgo.Record, err error) { check(err) })
	})
	check(producer.Flush(ctx))
}

func sayFranzCommit(_ *kgo.Client, sent *kmsg.OffsetCommitRequest, answer *kmsg.OffsetCommitResponse, err error) {
	if err != nil || answer == nil {
		// What was not committed comes again.
		return
	}
	committed := offsets{}
	for t, topic := range answer.Topics {
		for p, partition := range topic.Partitions {
			if partition.ErrorCode == 0 {
				committed[partition.Partition] = sent.Topics[t].Partitions[p].Offset
			}
		}
	}
	if len(committed) > 0 {
		sayCommitted(committed)
	}
}

func sayFranzRecord(record *kgo.Record) {
	sayRecord(record.Partition, record.Offset, record.Timestamp, record.Key, record.Value)
}
