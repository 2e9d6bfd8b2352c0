import java.time.Duration;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.serialization.StringDeserializer;

/** The program of the README, word for word but for its arguments. */
class FirstMinute {
  public static void main(String[] args) {
    var settings = Map.<String, Object>of(
        "bootstrap.servers", args.length > 0 ? args[0] : "127.0.0.1:9092",
        "group.id", "my-group",
        "auto.offset.reset", "earliest");
    try (var consumer = new KafkaConsumer<>(settings, new StringDeserializer(), new StringDeserializer())) {
      consumer.subscribe(List.of(args.length > 1 ? args[1] : "shop"));
      while (true) {
        for (var change : consumer.poll(Duration.ofSeconds(1))) {
          System.out.println(change.key() + " " + change.value());
        }
      }
    }
  }
}
