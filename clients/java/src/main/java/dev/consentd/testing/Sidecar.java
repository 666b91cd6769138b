package dev.consentd.testing;

import java.io.BufferedReader;
import java.io.File;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.locks.LockSupport;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * A real sidecar, on a ledger in a temporary folder, at a port of {@code 127.0.0.1} that was free
 * and at a Unix socket. It keeps both, and the ledger, when it is started again. For tests, on
 * Linux.
 *
 * <p>The binary is the one that {@code CONSENTD_BIN} names, else {@code consentd} on the path.
 */
public final class Sidecar implements AutoCloseable {
  private static final Duration START_TIMEOUT = Duration.ofSeconds(60);
  private static final Pattern GRPC_ADDRESS = Pattern.compile("\"grpc\":\"([^,\"]+)");

  private final Path folder;
  private final List<String> arguments;
  private String address = "127.0.0.1:0";
  private Process process;

  private Sidecar(Path folder, List<String> arguments) {
    this.folder = folder;
    this.arguments = arguments;
  }

  /**
   * Starts a sidecar and waits until it answers checks.
   *
   * @param arguments further arguments of {@code consentd serve}, each a name and a value, but for
   *     {@code --listen}; {@code --ledger} and {@code --unix} among them replace the sidecar's own
   * @return the sidecar, to be closed
   * @throws IllegalStateException if there is no binary, or it does not start within a minute
   */
  public static Sidecar start(String... arguments) {
    Path folder;
    try {
      folder = Files.createTempDirectory("consentd");
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
    var sidecar = new Sidecar(folder, List.of(arguments));
    try {
      sidecar.restart();
    } catch (RuntimeException e) {
      sidecar.close();
      throw e;
    }
    return sidecar;
  }

  /**
   * Where it is, by TCP.
   *
   * @return {@code 127.0.0.1:PORT}, for {@link dev.consentd.client.ConsentClient#create(String)}
   */
  public String address() {
    return address;
  }

  /**
   * Where it is, by a Unix socket, unless it was started with another one.
   *
   * @return {@code unix:PATH}
   */
  public String unixAddress() {
    return "unix:" + folder.resolve("consentd.sock");
  }

  /**
   * Starts it again after {@link #kill} or {@link #terminate}, on the same ledger and at the same
   * addresses, and waits until it answers checks.
   *
   * @throws IllegalStateException if it runs, or does not start within a minute
   */
  public void restart() {
    if (process != null && process.isAlive()) {
      throw new IllegalStateException("the sidecar runs already");
    }
    var command = new ArrayList<String>(List.of(binary(), "serve", "--listen", address));
    addUnlessGiven(command, "--unix", folder.resolve("consentd.sock").toString());
    addUnlessGiven(command, "--admin", "none");
    addUnlessGiven(command, "--ledger", "file:" + folder.resolve("consentd.redb"));
    command.addAll(arguments);
    try {
      process =
          new ProcessBuilder(command)
              .directory(folder.toFile())
              .redirectOutput(ProcessBuilder.Redirect.DISCARD)
              .start();
    } catch (IOException e) {
      throw new IllegalStateException("consentd cannot be started: " + e.getMessage(), e);
    }
    var ready = new CompletableFuture<String>();
    var reader = new Thread(() -> read(process.errorReader(), ready), "consentd-sidecar-log");
    reader.setDaemon(true);
    reader.start();
    try {
      address = ready.get(START_TIMEOUT.toSeconds(), TimeUnit.SECONDS);
    } catch (ExecutionException | TimeoutException e) {
      process.destroyForcibly();
      throw new IllegalStateException("consentd did not start: " + e.getMessage(), e);
    } catch (InterruptedException e) {
      process.destroyForcibly();
      Thread.currentThread().interrupt();
      throw new IllegalStateException("interrupted while consentd started", e);
    }
  }

  private void addUnlessGiven(List<String> command, String name, String value) {
    if (!arguments.contains(name)) {
      command.addAll(List.of(name, value));
    }
  }

  /** Reads the log to its end, since a full pipe would stop the sidecar. */
  private static void read(BufferedReader log, CompletableFuture<String> ready) {
    String listening = null;
    var said = new ArrayList<String>();
    try (log) {
      for (String line = log.readLine(); line != null; line = log.readLine()) {
        if (line.contains("\"message\":\"listening\"")) {
          Matcher found = GRPC_ADDRESS.matcher(line);
          listening = found.find() ? found.group(1) : null;
        } else if (line.contains("\"message\":\"the table holds the ledger\"")) {
          ready.complete(listening);
        }
        if (!ready.isDone()) {
          said.add(line);
        }
      }
    } catch (IOException e) {
      said.add(e.getMessage());
    }
    ready.completeExceptionally(new IllegalStateException(String.join("\n", said)));
  }

  private static String binary() {
    String named = System.getenv("CONSENTD_BIN");
    if (named != null && !named.isEmpty()) {
      return named;
    }
    String path = System.getenv("PATH");
    for (String folder : (path == null ? "" : path).split(File.pathSeparator)) {
      Path file = Path.of(folder, "consentd");
      if (Files.isExecutable(file)) {
        return file.toString();
      }
    }
    throw new IllegalStateException(
        "consentd is not on the path: install it with cargo install consentd, or set CONSENTD_BIN");
  }

  /** Kills it at once, as a crash would, and waits until it is gone. */
  public void kill() {
    process.destroyForcibly();
    await();
  }

  /** Asks it to end (SIGTERM): it finishes what is under way. Does not wait. */
  public void terminate() {
    process.destroy();
  }

  /**
   * Waits until it is gone.
   *
   * @throws IllegalStateException if it is still there after a minute
   */
  public void await() {
    try {
      if (!process.waitFor(START_TIMEOUT.toSeconds(), TimeUnit.SECONDS)) {
        throw new IllegalStateException("the sidecar does not end");
      }
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new IllegalStateException("interrupted while the sidecar ended", e);
    }
  }

  /** Stops it (SIGSTOP): it keeps its connections and answers nothing until {@link #resume}. */
  public void pause() {
    signal("STOP");
    // The signal is sent before it is delivered: a thread may go on for a moment, and still answer.
    long deadline = System.nanoTime() + START_TIMEOUT.toNanos();
    while (!stopped()) {
      if (System.nanoTime() > deadline) {
        throw new IllegalStateException("the sidecar does not stop");
      }
      LockSupport.parkNanos(Duration.ofMillis(1).toNanos());
    }
  }

  /** Whether each of its threads is in the state T; true where the system has no /proc to ask. */
  private boolean stopped() {
    Path threads = Path.of("/proc", Long.toString(process.pid()), "task");
    if (!Files.isDirectory(threads)) {
      return true;
    }
    try (var all = Files.list(threads)) {
      for (Path thread : all.toList()) {
        // The state comes after the program's name, which is in brackets and may contain any.
        String stat = Files.readString(thread.resolve("stat"));
        if (!stat.startsWith(") T", stat.lastIndexOf(')'))) {
          return false;
        }
      }
      return true;
    } catch (NoSuchFileException e) {
      return false; // A thread ended while it was looked at.
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /** Lets it go on after {@link #pause}. */
  public void resume() {
    signal("CONT");
  }

  private void signal(String name) {
    try {
      var command = List.of("kill", "-" + name, Long.toString(process.pid()));
      int code = new ProcessBuilder(command).inheritIO().start().waitFor();
      if (code != 0) {
        throw new IllegalStateException("kill ended with exit code " + code);
      }
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new IllegalStateException("interrupted while a signal was sent", e);
    }
  }

  /** Kills it if it runs, and removes the temporary folder. */
  @Override
  public void close() {
    if (process != null) {
      kill();
    }
    try (var files = Files.walk(folder)) {
      for (Path file : files.sorted(Comparator.reverseOrder()).toList()) {
        Files.delete(file);
      }
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }
}
