package dev.consentd.tests;

import static dev.consentd.tests.Support.PATIENCE;
import static dev.consentd.tests.Support.eventually;
import static dev.consentd.tests.Support.offer;
import static dev.consentd.tests.Support.run;
import static dev.consentd.tests.Support.user;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.consentd.client.ConsentClient;
import dev.consentd.client.Verdict;
import dev.consentd.testing.Sidecar;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** TLS, with certificates that openssl makes. */
final class TlsTest {
  @TempDir static Path folder;

  @BeforeAll
  static void makeCertificates() throws Exception {
    Files.writeString(folder.resolve("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n");
    String curve = "ec_paramgen_curve:P-256";
    for (String ca : new String[] {"ca", "other-ca"}) {
      run(
          folder,
          "openssl",
          "req",
          "-x509",
          "-newkey",
          "ec",
          "-pkeyopt",
          curve,
          "-nodes",
          "-days",
          "2",
          "-subj",
          "/CN=" + ca,
          "-keyout",
          ca + ".key",
          "-out",
          ca + ".crt");
    }
    for (String name : new String[] {"server", "client"}) {
      run(
          folder,
          "openssl",
          "req",
          "-newkey",
          "ec",
          "-pkeyopt",
          curve,
          "-nodes",
          "-subj",
          "/CN=" + name,
          "-keyout",
          name + ".key",
          "-out",
          name + ".csr");
      run(
          folder,
          "openssl",
          "x509",
          "-req",
          "-in",
          name + ".csr",
          "-CA",
          "ca.crt",
          "-CAkey",
          "ca.key",
          "-CAcreateserial",
          "-days",
          "2",
          "-out",
          name + ".crt",
          "-extfile",
          "names");
    }
  }

  private static Path file(String name) {
    return folder.resolve(name);
  }

  private static Sidecar sidecar() {
    return Sidecar.start(
        "--tls-cert-file", file("server.crt").toString(),
        "--tls-key-file", file("server.key").toString(),
        "--tls-client-ca-file", file("ca.crt").toString());
  }

  private static Verdict ask(ConsentClient.Builder builder, Duration deadline) {
    try (var client = builder.deadline(deadline).build()) {
      return client.maySend(offer(user(0)));
    }
  }

  @Test
  void aClientWithItsCertificateIsServed() {
    try (var sidecar = sidecar()) {
      var builder =
          ConsentClient.builder()
              .address(sidecar.address())
              .caFile(file("ca.crt"))
              .certificate(file("client.crt"), file("client.key"));
      assertTrue(ask(builder, PATIENCE).decided());
      // The same options do for a Unix socket, which never has TLS.
      assertTrue(ask(builder.address(sidecar.unixAddress()), PATIENCE).decided());
    }
  }

  @Test
  void otherClientsAreNot() {
    try (var sidecar = sidecar()) {
      var address = ConsentClient.builder().address(sidecar.address());
      var briefly = Duration.ofSeconds(3);
      assertTrue(ask(address, briefly).unavailable());
      var withoutCertificate =
          ConsentClient.builder().address(sidecar.address()).caFile(file("ca.crt"));
      assertTrue(ask(withoutCertificate, briefly).unavailable());
      var withOtherCa =
          ConsentClient.builder()
              .address(sidecar.address())
              .caFile(file("other-ca.crt"))
              .certificate(file("client.crt"), file("client.key"));
      // Where the handshake takes longer than the deadline, that is the cause.
      eventually(
          "the certificate is named as the cause",
          () -> {
            Verdict verdict = ask(withOtherCa, briefly);
            assertTrue(verdict.unavailable());
            return verdict.cause().toLowerCase().contains("certif");
          });
    }
  }

  @Test
  void aFileThatIsNotThereIsRefused() {
    var builder = ConsentClient.builder().address("localhost:1").caFile(file("none"));
    assertThrows(IllegalArgumentException.class, builder::build);
  }
}
