package dev.consentd.client;

import java.net.URI;
import java.net.URISyntaxException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;

/**
 * Where a sidecar is.
 *
 * @param target the address as gRPC for Java has it
 * @param isUnix whether it is a Unix socket
 */
record Address(String target, boolean isUnix) {
  private static final String DEFAULT = "127.0.0.1:50051";

  /** Returns the address where none is given. */
  static String ofEnvironment() {
    String address = System.getenv("CONSENTD_ADDR");
    return address == null || address.isEmpty() ? DEFAULT : address;
  }

  /** Reads {@code HOST:PORT}, {@code unix:PATH} or {@code unix:@NAME}. */
  static Address parse(String address) {
    try {
      if (address.startsWith("unix:") && !address.equals("unix:") && !address.equals("unix:@")) {
        String path = address.substring("unix:".length());
        // The name of an abstract socket begins with a zero byte.
        boolean isAbstract = path.startsWith("@");
        return unix(
            isAbstract ? "\0" + path.substring(1) : Path.of(path).toAbsolutePath().toString());
      }
      URI uri = new URI("tcp://" + address);
      String authority = uri.getHost() + ":" + uri.getPort();
      if (uri.getHost() != null && uri.getPort() > 0 && authority.equals(address)) {
        return new Address("dns:///" + address, false);
      }
    } catch (URISyntaxException e) {
      // Said below.
    }
    throw new IllegalArgumentException(
        "the address must be HOST:PORT, unix:PATH or unix:@NAME, and is \"" + address + "\"");
  }

  private static Address unix(String path) {
    // gRPC reads the path out of a URI, in which other characters must be percent-encoded.
    var target = new StringBuilder("unix:");
    for (byte one : path.getBytes(StandardCharsets.UTF_8)) {
      boolean asIs =
          one > 0 && (Character.isLetterOrDigit((char) one) || "/-._~".indexOf(one) >= 0);
      target.append(asIs ? Character.toString(one) : String.format("%%%02X", one));
    }
    return new Address(target.toString(), true);
  }
}
