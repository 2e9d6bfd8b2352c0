package main

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/IBM/sarama"
)

// ibm is IBM's sarama: as its users have it unless they ask for more, with the versions of Kafka 2.8 and `range`; or with
// the newest versions, and cooperative.
type ibm struct {
	cooperative bool
}

func (ibm) module() string { return "github.com/IBM/sarama" }

func (s ibm) config() *sarama.Config {
	config := sarama.NewConfig()
	config.Consumer.MaxWaitTime = fetchMaxWait
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	config.Consumer.Group.Session.Timeout = sessionTimeout
	config.Consumer.Group.Heartbeat.Interval = heartbeatInterval
	config.Metadata.Retry.Max = 40
	if s.cooperative {
		config.Version = sarama.MaxVersion
		config.Consumer.Group.Rebalance.GroupStrategies =
			[]sarama.BalanceStrategy{sarama.NewBalanceStrategyCooperativeSticky()}
	}
	return config
}

func (s ibm) list(bootstrap string) {
	client := must(sarama.NewClient([]string{bootstrap}, s.config()))
	for _, topic := range must(client.Topics()) {
		sayTopic(topic, len(must(client.Partitions(topic))))
	}
}

func (s ibm) read(bootstrap, topic, start string) {
	client := must(sarama.NewClient([]string{bootstrap}, s.config()))
	reader := must(sarama.NewConsumerFromClient(client))
	found := offsets{}
	for _, partition := range must(client.Partitions(topic)) {
		time := sarama.OffsetOldest
		switch start {
		case "beginning":
		case "end":
			time = sarama.OffsetNewest
		default:
			time = must(strconv.ParseInt(start, 10, 64))
		}
		// Where there is no record of that time or later, it is told -1, which means the end to it.
		found[partition] = must(client.GetOffset(topic, partition, time))
		records := must(reader.ConsumePartition(topic, partition, found[partition]))
		go func() {
			for record := range records.Messages() {
				saySaramaRecord(record)
			}
		}()
	}
	sayGained(found)
	select {}
}

func (s ibm) group(ctx context.Context, bootstrap, topic, name string, async bool) {
	config := s.config()
	config.Consumer.Offsets.AutoCommit.Enable = async
	config.Consumer.Offsets.AutoCommit.Interval = 200 * time.Millisecond
	member := must(sarama.NewConsumerGroup([]string{bootstrap}, name, config))
	for ctx.Err() == nil {
		err := member.Consume(ctx, []string{topic}, saramaMember{async})
		if err != nil && !errors.Is(err, sarama.ErrClosedConsumerGroup) {
			// The broker is away.
			time.Sleep(fetchMaxWait)
		}
	}
	check(member.Close())
}

func (s ibm) write(bootstrap, topic, codec string, each int) {
	config := s.config()
	check(config.Producer.Compression.UnmarshalText([]byte(codec)))
	config.Producer.Idempotent = true
	config.Producer.RequiredAcks = sarama.WaitForAll
	config.Producer.Return.Successes = true
	config.Net.MaxOpenRequests = 1
	producer := must(sarama.NewSyncProducer([]string{bootstrap}, config))
	var records []*sarama.ProducerMessage
	counterEvents(each, func(key, payload []byte) {
		records = append(records, &sarama.ProducerMessage{
			Topic: topic, Key: sarama.ByteEncoder(key), Value: sarama.ByteEncoder(payload),
		})
	})
	check(producer.SendMessages(records))
	check(producer.Close())
}

// saramaMember commits through sarama's own background loop, or by itself.
type saramaMember struct {
	async bool
}

func (saramaMember) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (saramaMember) Cleanup(sarama.ConsumerGroupSession) error { return nil }

func (m saramaMember) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	sayGained(offsets{claim.Partition(): claim.InitialOffset()})
	for record := range claim.Messages() {
		saySaramaRecord(record)
		session.MarkMessage(record, "")
		if !m.async && len(claim.Messages()) == 0 {
			session.Commit()
		}
	}
	// What was printed so far is committed before another member gets it.
	session.Commit()
	sayLost(claim.Partition())
	return nil
}

func saySaramaRecord(record *sarama.ConsumerMessage) {
	sayRecord(record.Partition, record.Offset, record.Timestamp, record.Key, record.Value)
}
