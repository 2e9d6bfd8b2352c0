package main

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

// What Redpanda Console and other tools that are made with franz-go ask of a broker. Each function says one object.

func console(bootstrap string) *kadm.Client {
	return kadm.NewClient(franz{}.connect(bootstrap))
}

// look asks what the pages about the cluster, a topic and a group need.
func look(ctx context.Context, console *kadm.Client, topic, group string) {
	metadata := must(console.Metadata(ctx, topic))
	release := kversion.V4_1_0()
	var unlike []string
	for _, broker := range must(console.ApiVersions(ctx)) {
		check(broker.Err)
		broker.EachKeySorted(func(key, _, newest int16) {
			if inRelease, known := release.LookupMaxKeyVersion(key); !known || newest != inRelease {
				unlike = append(unlike, kmsg.NameForKey(key))
			}
		})
	}
	everyRule := kadm.NewACLs().AnyResource().Allow().AllowHosts().Deny().DenyHosts().Operations()
	rules := must(console.DescribeACLs(ctx, everyRule))
	say(map[string]any{"cluster": map[string]any{
		"id":         metadata.Cluster,
		"brokers":    len(metadata.Brokers),
		"controller": metadata.Controller,
		"unlike 4.1": unlike,
		"settings":   settings(must(console.DescribeBrokerConfigs(ctx, metadata.Brokers.NodeIDs()...))),
		"moving":     len(must(console.ListPartitionReassignments(ctx, nil))),
		"quotas":     len(must(console.DescribeClientQuotas(ctx, false, nil))),
		"users":      len(must(console.DescribeUserSCRAMs(ctx))),
		"rules":      refusal(rules, rules[0].Err),
	}})

	var bytes int64
	for _, directories := range must(console.DescribeAllLogDirs(ctx, metadata.Topics.TopicsSet())) {
		for _, directory := range directories {
			check(directory.Err)
			bytes += directory.Size()
		}
	}
	say(map[string]any{"topic": map[string]any{
		"partitions": len(metadata.Topics[topic].Partitions),
		"replicas":   metadata.Topics[topic].Partitions.NumReplicas(),
		"settings":   settings(must(console.DescribeTopicConfigs(ctx, topic))),
		"first":      places(must(console.ListStartOffsets(ctx, topic))),
		"next":       places(must(console.ListEndOffsets(ctx, topic))),
		"newest":     places(must(console.ListMaxTimestampOffsets(ctx, topic))),
		"bytes":      bytes,
	}})

	listed := must(console.ListGroups(ctx))
	described := must(console.Lag(ctx, group))[group]
	check(described.Error())
	members := map[string][]int32{}
	for _, member := range described.Members {
		assigned, _ := member.Assigned.AsConsumer()
		for _, held := range assigned.Topics {
			members[member.MemberID] = held.Partitions
		}
	}
	say(map[string]any{"group": map[string]any{
		"listed":   slices.Sorted(maps.Keys(listed)),
		"state":    described.State,
		"protocol": described.Protocol,
		"members":  slices.Collect(maps.Values(members)),
		"lag":      described.Lag.Total(),
	}})
}

// edit does what their buttons do with a group that nobody is in, and with a topic.
func edit(ctx context.Context, console *kadm.Client, topic, group string) {
	starts, ends := must(console.ListStartOffsets(ctx, topic)), must(console.ListEndOffsets(ctx, topic))
	check(console.CommitAllOffsets(ctx, group, starts.Offsets()))
	rewound := must(console.Lag(ctx, group))[group].Lag.Total()

	partition := kadm.TopicsSet{}
	partition.Add(topic, 0)
	forgotten := must(console.DeleteOffsets(ctx, group, partition))
	check(forgotten.Error())
	remaining := must(console.FetchOffsets(ctx, group))
	_, remembered := remaining.Lookup(topic, 0)

	deleted := must(console.DeleteGroup(ctx, group))
	check(deleted.Err)
	_, listed := must(console.ListGroups(ctx))[group]

	emptied := kadm.Offsets{}
	emptied.Add(kadm.Offset{Topic: topic, Partition: 0, At: ends[topic][0].Offset})
	check(must(console.DeleteRecords(ctx, emptied)).Error())

	enlarged := must(console.UpdatePartitions(ctx, 8, topic))
	say(map[string]any{"edited": map[string]any{
		"rewound":    rewound,
		"remembered": remembered,
		"listed":     listed,
		"first":      places(must(console.ListStartOffsets(ctx, topic))),
		"next":       places(must(console.ListEndOffsets(ctx, topic))),
		"making":     refusal(console.CreateTopic(ctx, 1, 1, nil, "made")),
		"deleting":   refusal(console.DeleteTopic(ctx, topic)),
		"enlarging":  refusal(enlarged, enlarged.Error()),
	}})
}

func settings(resources kadm.ResourceConfigs) map[string]string {
	values := map[string]string{}
	for _, resource := range resources {
		check(resource.Err)
		for _, setting := range resource.Configs {
			values[setting.Key] = setting.MaybeValue()
		}
	}
	return values
}

func places(listed kadm.ListedOffsets) offsets {
	check(listed.Error())
	found := offsets{}
	listed.Each(func(place kadm.ListedOffset) { found[place.Partition] = place.Offset })
	return found
}

// refusal is the name of the error that an answer has.
func refusal[T any](_ T, err error) string {
	var refused *kerr.Error
	if errors.As(err, &refused) {
		return refused.Message
	}
	if err != nil {
		return err.Error()
	}
	return ""
}
