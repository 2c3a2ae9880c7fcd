import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.time.Duration;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.JoinWindows;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.StreamJoined;

/**
 * A peer for benchmarks/join.py: Kafka Streams joins queries with clicks by key within ten minutes and writes, for each
 * pair, the query, the clicked document and those above it. No trust, no weights, no revisions, no drift.
 *
 * <p>Arguments: bootstrap servers, queries' topic, clicks' topic, output topic, events in both, "changelog" or "plain",
 * threads. Prints {"events", "examples", "seconds"}; the clock runs from the first record seen to the last.
 */
public final class KafkaStreamsJoin {
  private static final long PATIENCE_SECONDS = 180;

  private final ObjectMapper json = new ObjectMapper();
  private final AtomicLong seen = new AtomicLong();
  private final AtomicLong formed = new AtomicLong();
  private final AtomicLong firstAt = new AtomicLong();
  private final AtomicLong lastAt = new AtomicLong();
  private final CountDownLatch all = new CountDownLatch(1);
  private final long expected;

  private KafkaStreamsJoin(long expected) {
    this.expected = expected;
  }

  public static void main(String[] arguments) throws Exception {
    new KafkaStreamsJoin(Long.parseLong(arguments[4]))
        .run(arguments[0], arguments[1], arguments[2], arguments[3], arguments[5].equals("changelog"),
            Integer.parseInt(arguments[6]));
  }

  private void run(String servers, String queryTopic, String clickTopic, String output, boolean changelog,
      int threads) throws Exception {
    Serde<byte[]> raw = Serdes.ByteArray();
    StreamsBuilder topology = new StreamsBuilder();
    KStream<byte[], byte[]> queries =
        topology.stream(queryTopic, Consumed.with(raw, raw)).peek((key, value) -> tick());
    KStream<byte[], byte[]> clicks =
        topology.stream(clickTopic, Consumed.with(raw, raw)).peek((key, value) -> tick());
    StreamJoined<byte[], byte[], byte[]> stores = StreamJoined.with(raw, raw, raw);
    queries
        .join(
            clicks,
            this::example,
            JoinWindows.ofTimeDifferenceWithNoGrace(Duration.ofMinutes(10)),
            changelog ? stores : stores.withLoggingDisabled())
        .to(output, Produced.with(raw, raw));

    try (KafkaStreams streams = new KafkaStreams(topology.build(), settings(servers, threads))) {
      streams.start();
      if (!all.await(PATIENCE_SECONDS, TimeUnit.SECONDS)) {
        System.err.printf("%d of %d events within %d s%n", seen.get(), expected, PATIENCE_SECONDS);
        System.exit(1);
      }
      Thread.sleep(500); // the last joins come after the last record was seen
      double seconds = (lastAt.get() - firstAt.get()) / 1e9;
      System.out.printf("{\"events\": %d, \"examples\": %d, \"seconds\": %.3f}%n", expected, formed.get(), seconds);
    }
  }

  private static Properties settings(String servers, int threads) throws IOException {
    Properties settings = new Properties();
    settings.put(StreamsConfig.APPLICATION_ID_CONFIG, "peer-" + ProcessHandle.current().pid());
    settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, servers);
    settings.put(StreamsConfig.STATE_DIR_CONFIG, Files.createTempDirectory("kafka-streams-peer").toString());
    settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, threads);
    settings.put("auto.offset.reset", "earliest");
    return settings;
  }

  private void tick() {
    long number = seen.incrementAndGet();
    if (number == 1) {
      firstAt.set(System.nanoTime());
    }
    if (number == expected) {
      lastAt.set(System.nanoTime());
      all.countDown();
    }
  }

  private byte[] example(byte[] query, byte[] click) {
    try {
      JsonNode served = json.readTree(query);
      String clicked = json.readTree(click).get("doc_id").asText();
      ObjectNode example = json.createObjectNode();
      example.put("example_id", served.get("query_id").asText() + "/" + clicked);
      example.put("query", served.get("query").asText());
      example.put("doc_id", clicked);
      ArrayNode above = example.putArray("negatives");
      for (JsonNode result : served.get("results")) {
        String shown = result.get("doc_id").asText();
        if (shown.equals(clicked)) {
          break;
        }
        above.add(shown);
      }
      formed.incrementAndGet();
      return json.writeValueAsBytes(example);
    } catch (IOException error) {
      throw new UncheckedIOException(error);
    }
  }
}
