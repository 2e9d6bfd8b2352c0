import java.time.Duration;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Properties;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import org.apache.kafka.clients.consumer.CommitFailedException;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.consumer.SubscriptionPattern;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.RebalanceInProgressException;
import org.apache.kafka.common.errors.WakeupException;
import org.apache.kafka.common.serialization.StringDeserializer;

/**
 * The Java client, driven by tests/clients.rs: it prints what it sees as one JSON object a line, and judges nothing.
 *
 * <pre>
 *   ClientStory version
 *   ClientStory list  BOOTSTRAP
 *   ClientStory read  BOOTSTRAP TOPIC beginning|end|MILLISECONDS            until it is killed
 *   ClientStory group BOOTSTRAP TOPIC GROUP sync|async [SETTING=VALUE ...]  until its standard input ends; then leaves
 * </pre>
 *
 * A group's TOPIC that begins with ^ is a pattern, which the broker evaluates if the group is of the consumer protocol.
 */
class ClientStory {
  public static void main(String[] args) throws Exception {
    switch (args[0]) {
      case "version" -> version();
      case "list" -> list(args[1]);
      case "read" -> read(args[1], args[2], args[3]);
      case "group" -> group(args[1], args[2], args[3], args[4].equals("async"), List.of(args).subList(5, args.length));
      default -> throw new IllegalArgumentException(args[0]);
    }
  }

  static KafkaConsumer<String, String> consumer(String bootstrap, Map<String, Object> more) {
    var settings = new HashMap<String, Object>(more);
    settings.put(ConsumerConfig.BOOTSTRAP_SERVERS_CONFIG, bootstrap);
    settings.put(ConsumerConfig.ENABLE_AUTO_COMMIT_CONFIG, false);
    settings.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");
    settings.put(ConsumerConfig.RECONNECT_BACKOFF_MAX_MS_CONFIG, 500);
    return new KafkaConsumer<>(settings, new StringDeserializer(), new StringDeserializer());
  }

  static void version() throws Exception {
    var built = new Properties();
    try (var file = KafkaConsumer.class.getResourceAsStream("/kafka/kafka-version.properties")) {
      built.load(file);
    }
    System.out.println(built.getProperty("version"));
  }

  static void list(String bootstrap) {
    try (var consumer = consumer(bootstrap, Map.of())) {
      consumer.listTopics().forEach((topic, partitions) ->
          print("{\"topic\":%s,\"partitions\":%d}".formatted(quote(topic), partitions.size())));
    }
  }

  static void read(String bootstrap, String topic, String from) {
    try (var consumer = consumer(bootstrap, Map.of())) {
      var partitions = new ArrayList<TopicPartition>();
      consumer.partitionsFor(topic).forEach(p -> partitions.add(new TopicPartition(topic, p.partition())));
      consumer.assign(partitions);
      switch (from) {
        case "beginning" -> consumer.seekToBeginning(partitions);
        case "end" -> consumer.seekToEnd(partitions);
        default -> {
          var times = new HashMap<TopicPartition, Long>();
          partitions.forEach(p -> times.put(p, Long.parseLong(from)));
          consumer.offsetsForTimes(times).forEach((p, found) -> {
            if (found == null) {
              consumer.seekToEnd(List.of(p));
            } else {
              consumer.seek(p, found.offset());
            }
          });
        }
      }
      assigned(consumer, partitions);
      while (true) {
        consumer.poll(Duration.ofMillis(200)).forEach(ClientStory::print);
      }
    }
  }

  static void group(String bootstrap, String topic, String group, boolean async, List<String> more) throws Exception {
    var settings = new HashMap<String, Object>();
    settings.put(ConsumerConfig.GROUP_ID_CONFIG, group);
    settings.put(ConsumerConfig.MAX_POLL_RECORDS_CONFIG, 20);
    for (var setting : more) {
      var pair = setting.split("=", 2);
      settings.put(pair[0], pair[1]);
    }
    try (var consumer = consumer(bootstrap, settings)) {
      untilInputEnds(consumer::wakeup);
      var listener = new ConsumerRebalanceListener() {
        @Override
        public void onPartitionsAssigned(Collection<TopicPartition> partitions) {
          // A cooperative assignor names only what is new.
          assigned(consumer, consumer.assignment());
        }

        @Override
        public void onPartitionsRevoked(Collection<TopicPartition> partitions) {
          // What was printed so far is committed before another member gets it.
          commit(consumer, false);
          onPartitionsLost(partitions);
        }

        @Override
        public void onPartitionsLost(Collection<TopicPartition> partitions) {
          var kept = new HashSet<>(consumer.assignment());
          kept.removeAll(partitions);
          assigned(consumer, kept);
        }
      };
      if (!topic.startsWith("^")) {
        consumer.subscribe(List.of(topic), listener);
      } else if ("consumer".equals(settings.get("group.protocol"))) {
        consumer.subscribe(new SubscriptionPattern(topic), listener);
      } else {
        consumer.subscribe(Pattern.compile(topic), listener);
      }
      while (true) {
        var records = consumer.poll(Duration.ofMillis(200));
        records.forEach(ClientStory::print);
        if (!records.isEmpty()) {
          commit(consumer, async);
        }
      }
    } catch (WakeupException leave) {
      // Closing the consumer has called onPartitionsRevoked and left the group.
    }
  }

  static void commit(KafkaConsumer<String, String> consumer, boolean async) {
    var positions = new HashMap<TopicPartition, OffsetAndMetadata>();
    consumer.assignment().forEach(p -> positions.put(p, new OffsetAndMetadata(consumer.position(p))));
    if (async) {
      consumer.commitAsync(positions, (offsets, failure) -> {
        if (failure == null) {
          committed(offsets);
        }
      });
    } else {
      try {
        consumer.commitSync(positions);
        committed(positions);
      } catch (RebalanceInProgressException | CommitFailedException rejoin) {
        // The next poll rejoins; what was not committed comes again.
      }
    }
  }

  static void untilInputEnds(Runnable then) {
    var watcher = new Thread(() -> {
      try {
        while (System.in.read() >= 0) {}
      } catch (java.io.IOException closed) {
        // As good as its end.
      }
      then.run();
    });
    watcher.setDaemon(true);
    watcher.start();
  }

  static void assigned(KafkaConsumer<String, String> consumer, Collection<TopicPartition> partitions) {
    var positions = new HashMap<TopicPartition, Long>();
    partitions.forEach(p -> positions.put(p, consumer.position(p)));
    print("assigned", positions);
  }

  static void committed(Map<TopicPartition, OffsetAndMetadata> offsets) {
    var positions = new HashMap<TopicPartition, Long>();
    offsets.forEach((p, o) -> positions.put(p, o.offset()));
    print("committed", positions);
  }

  static void print(String what, Map<TopicPartition, Long> positions) {
    print(positions.entrySet().stream()
        .map(e -> "\"%d\":%d".formatted(e.getKey().partition(), e.getValue()))
        .collect(Collectors.joining(",", "{\"" + what + "\":{", "}}")));
  }

  static void print(ConsumerRecord<String, String> record) {
    print("{\"partition\":%d,\"offset\":%d,\"ts\":%d,\"key\":%s,\"payload\":%s}".formatted(
        record.partition(), record.offset(), record.timestamp(), quote(record.key()), quote(record.value())));
  }

  static synchronized void print(String line) {
    System.out.println(line);
    System.out.flush();
  }

  static String quote(String text) {
    return Optional.ofNullable(text)
        .map(t -> '"' + t.replace("\\", "\\\\").replace("\"", "\\\"").replace("\n", "\\n") + '"')
        .orElse("null");
  }
}
