import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.common.ElectionType;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.acl.AclBindingFilter;
import org.apache.kafka.common.acl.AclOperation;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.SecurityDisabledException;
import org.apache.kafka.common.quota.ClientQuotaFilter;

/**
 * The calls by which consoles fill their pages (kafbat kafka-ui, AKHQ), each with a check of what it shows.
 *
 * Consoles BOOTSTRAP TOPIC PARTITIONS RECORDS GROUP DATA_DIRECTORY
 */
public class Consoles {
    public static void main(String[] args) throws Exception {
        String topic = args[1], group = args[4], directory = args[5];
        int partitions = Integer.parseInt(args[2]);
        long records = Long.parseLong(args[3]);
        Set<TopicPartition> all = IntStream.range(0, partitions)
            .mapToObj(partition -> new TopicPartition(topic, partition)).collect(Collectors.toSet());
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", args[0]))) {
            overview(admin, directory);
            settings(admin, topic);
            topics(admin, topic, all, records);
            groups(admin, group, all, records);
            security(admin);
        }
        System.out.println("every page is filled");
    }

    /** The page of the cluster and that of a broker. */
    static void overview(Admin admin, String directory) throws Exception {
        var cluster = admin.describeCluster(new DescribeClusterOptions().includeAuthorizedOperations(true));
        check(cluster.nodes().get().size() == 1 && cluster.controller().get().id() == 0, "one broker, the controller");
        check(!cluster.clusterId().get().isEmpty(), "the cluster has an id");
        var operations = cluster.authorizedOperations().get();
        check(operations.contains(AclOperation.DESCRIBE), "operations that are allowed: " + operations);

        var features = admin.describeFeatures().featureMetadata().get().finalizedFeatures();
        check(features.keySet().containsAll(List.of("group.version", "metadata.version")), "features: " + features);

        var quorum = admin.describeMetadataQuorum().quorumInfo().get();
        check(quorum.leaderId() == 0 && quorum.voters().size() == 1, "a quorum of one: " + quorum);

        var directories = admin.describeLogDirs(List.of(0)).allDescriptions().get().get(0);
        var description = directories.get(directory);
        check(directories.size() == 1 && description.error() == null, "one log directory: " + directories);
        long total = description.totalBytes().getAsLong(), usable = description.usableBytes().getAsLong();
        check(0 < usable && usable <= total, "room on the volume: " + usable + " of " + total);
        check(admin.listPartitionReassignments().reassignments().get().isEmpty(), "no replica is moved");
    }

    /** The settings of the broker and of a topic. */
    static void settings(Admin admin, String topic) throws Exception {
        var broker = new ConfigResource(ConfigResource.Type.BROKER, "0");
        var ofTopic = new ConfigResource(ConfigResource.Type.TOPIC, topic);
        var options = new DescribeConfigsOptions().includeSynonyms(true).includeDocumentation(true);
        var configs = admin.describeConfigs(List.of(broker, ofTopic), options).all().get();
        var version = configs.get(broker).get("inter.broker.protocol.version");
        check(version != null && version.value().startsWith("4."), "the version that kafka-ui shows: " + version);
        check(configs.get(broker).get("delete.topic.enable").value().equals("false"), "no topic can be deleted");
        for (Config config : configs.values()) {
            for (ConfigEntry entry : config.entries()) {
                check(entry.value() != null && entry.type() != ConfigEntry.ConfigType.UNKNOWN, "a value: " + entry);
                check(entry.source() != ConfigEntry.ConfigSource.UNKNOWN, "where it comes from: " + entry);
                check(!entry.documentation().isEmpty(), "what it is: " + entry);
            }
        }
        for (String name : List.of("cleanup.policy", "retention.ms", "retention.bytes", "segment.bytes",
                "max.message.bytes", "min.insync.replicas")) {
            check(configs.get(ofTopic).get(name) != null, "the topic has " + name);
        }
    }

    /** The list of topics and the page of one. */
    static void topics(Admin admin, String topic, Set<TopicPartition> all, long records) throws Exception {
        var names = admin.listTopics(new ListTopicsOptions().listInternal(true)).names().get();
        check(names.contains(topic), "topics: " + names);
        var options = new DescribeTopicsOptions().includeAuthorizedOperations(true);
        var described = admin.describeTopics(names, options).allTopicNames().get().get(topic);
        check(described.partitions().size() == all.size(), "partitions: " + described);
        check(described.partitions().stream().allMatch(p -> p.leader().id() == 0 && p.isr().size() == 1), "in sync");
        check(described.authorizedOperations().contains(AclOperation.READ), "operations: " + described);
        check(sum(admin, all, OffsetSpec.earliest()) == 0, "it begins at 0");
        check(sum(admin, all, OffsetSpec.latest()) == records, "it has " + records + " records");
        var producers = admin.describeProducers(all).all().get().values();
        check(producers.stream().allMatch(state -> state.activeProducers().isEmpty()), "nobody produces");
        var sizes = admin.describeLogDirs(List.of(0)).allDescriptions().get().get(0).values().iterator().next();
        check(all.stream().allMatch(p -> sizes.replicaInfos().get(p).size() > 0), "sizes: " + sizes);
        var elected = admin.electLeaders(ElectionType.PREFERRED, all).partitions().get();
        check(elected.size() == all.size(), "leaders: " + elected);
    }

    static long sum(Admin admin, Set<TopicPartition> all, OffsetSpec spec) throws Exception {
        var asked = all.stream().collect(Collectors.toMap(partition -> partition, partition -> spec));
        return admin.listOffsets(asked).all().get().values().stream().mapToLong(found -> found.offset()).sum();
    }

    /** The list of groups and the page of one. */
    static void groups(Admin admin, String group, Set<TopicPartition> all, long records) throws Exception {
        var listed = admin.listGroups(ListGroupsOptions.forConsumerGroups()).all().get();
        check(listed.stream().anyMatch(found -> found.groupId().equals(group)), "groups: " + listed);
        var described = admin.describeConsumerGroups(List.of(group)).all().get().get(group);
        check(described.members().isEmpty() && described.coordinator().id() == 0, "nobody is in it: " + described);
        var committed = admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get();
        check(committed.keySet().equals(all), "commits: " + committed);
        check(committed.values().stream().mapToLong(offset -> offset.offset()).sum() == records, "no lag");
    }

    /** Quotas, users and access rules, which are not there. */
    static void security(Admin admin) throws Exception {
        check(admin.describeClientQuotas(ClientQuotaFilter.all()).entities().get().isEmpty(), "no quotas");
        check(admin.describeUserScramCredentials().all().get().isEmpty(), "no accounts");
        check(refused(() -> admin.describeAcls(AclBindingFilter.ANY).values().get()) instanceof SecurityDisabledException,
            "access rules are off, so that their page is hidden");
        check(admin.listTransactions().all().get().isEmpty(), "no transactions");
        var metrics = Set.of(ConfigResource.Type.CLIENT_METRICS);
        check(admin.listConfigResources(metrics, new ListConfigResourcesOptions()).all().get().isEmpty(), "no metrics");
    }

    static Throwable refused(Callable<?> call) throws Exception {
        try {
            return new AssertionError("answered with " + call.call());
        } catch (ExecutionException e) {
            return e.getCause();
        }
    }

    static void check(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }
}
