import java.time.Duration;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/** The Java consumer of `millrace bench fetch`: reads so many records from a topic's start and says how long it took. */
class FetchBench {
  public static void main(String[] args) {
    var settings = Map.<String, Object>of("bootstrap.servers", args[0], "enable.auto.commit", false);
    var partition = new TopicPartition(args[1], 0);
    long left = Long.parseLong(args[2]), bytes = 0, started = 0;
    try (var consumer = new KafkaConsumer<>(settings, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
      consumer.assign(List.of(partition));
      consumer.seekToBeginning(List.of(partition));
      while (left > 0) {
        for (var record : consumer.poll(Duration.ofSeconds(1))) {
          if (started == 0) started = System.nanoTime();
          bytes += (record.key() == null ? 0 : record.key().length) + (record.value() == null ? 0 : record.value().length);
          left--;
        }
      }
      System.out.printf("{\"bytes\":%d,\"seconds\":%s}%n", bytes, (System.nanoTime() - started) / 1e9);
    }
  }
}
