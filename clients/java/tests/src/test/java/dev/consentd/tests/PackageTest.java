package dev.consentd.tests;

import static dev.consentd.tests.Support.run;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.consentd.client.ConsentClient;
import dev.consentd.testing.Sidecar;
import java.io.File;
import java.io.IOException;
import java.net.URL;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.jar.JarFile;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** What is published. */
final class PackageTest {
  private static final Path FOLDER = Support.repository().resolve("clients/java");

  private static String find(Path file, String pattern) throws Exception {
    Matcher found = Pattern.compile(pattern).matcher(Files.readString(file));
    assertTrue(found.find(), () -> file + " has no " + pattern);
    return found.group(1);
  }

  private static String version() throws Exception {
    return find(FOLDER.resolve("pom.xml"), "<version>([^<]+)</version>");
  }

  @Test
  void theVersionIsTheServers() throws Exception {
    Path root = Support.repository().resolve("Cargo.toml");
    assertEquals(find(root, "(?m)^version = \"([^\"]+)\""), version());
    assertEquals(version(), find(FOLDER.resolve("README.md"), "<version>([^<]+)</version>"));
  }

  @Test
  void whatIsTestedIsTheInstalledArtifact() throws Exception {
    URL jar = ConsentClient.class.getProtectionDomain().getCodeSource().getLocation();
    Path installed = Path.of(Support.required("consentd.maven"));
    assertTrue(Path.of(jar.toURI()).startsWith(installed), () -> "it is " + jar);
  }

  @Test
  void theArtifactsAreComplete() throws Exception {
    String base = "target/consentd-client-" + version();
    for (String suffix : List.of(".jar", "-sources.jar", "-javadoc.jar")) {
      try (var jar = new JarFile(FOLDER.resolve(base + suffix).toFile())) {
        String extension =
            suffix.equals(".jar") ? ".class" : suffix.startsWith("-s") ? ".java" : ".html";
        assertTrue(jar.getEntry("dev/consentd/client/ConsentClient" + extension) != null, suffix);
        if (!suffix.equals("-javadoc.jar")) {
          assertTrue(jar.getEntry("dev/consentd/v1/CanSendRequest" + extension) != null, suffix);
          assertTrue(jar.getEntry("META-INF/LICENSE") != null, suffix);
        }
        assertFalse(jar.stream().anyMatch(entry -> entry.getName().contains("Test")), suffix);
      }
    }
    assertTrue(Files.exists(FOLDER.resolve(base + ".pom")));
  }

  @Test
  void theGeneratedCodeIsCurrent() {
    String repository = "-Dmaven.repo.local=" + Support.required("consentd.maven");
    run(FOLDER, "./generate", "--check", repository);
  }

  /** Compiles and runs each example of the README by itself, as a newcomer does. */
  @Test
  void theReadmesExamplesWork(@TempDir Path folder) throws Exception {
    String readme = Files.readString(FOLDER.resolve("README.md"));
    Matcher examples = Pattern.compile("(?s)```java\n(.*?)```").matcher(readme);
    int count = 0;
    String classPath = System.getProperty("java.class.path");
    try (var sidecar = Sidecar.start()) {
      while (examples.find()) {
        String code = examples.group(1);
        String name = "Example" + count++;
        if (!code.contains("class ")) {
          // A fragment: statements that follow the first example's.
          code =
              "import dev.consentd.client.*;\nimport dev.consentd.testing.*;\n"
                  + "import dev.consentd.v1.Evidence;\nimport dev.consentd.v1.OptInMethod;\n"
                  + "import java.nio.file.Path;\n"
                  + "import java.time.Duration;\nimport java.util.*;\n\n"
                  + "class Example {\n  public static void main(String[] arguments) {\n"
                  + "    var consent = ConsentClient.create();\n"
                  + "    consent.ready(Duration.ofSeconds(30));\n"
                  + code.indent(4)
                  + "    consent.close();\n  }\n}\n";
        }
        Path source = Files.createDirectories(folder.resolve(name)).resolve("Example.java");
        // A JVM that has just started may exceed the usual deadline while other tests run.
        String patient = "ConsentClient.builder().deadline(Duration.ofMinutes(1)).build()";
        code = code.replace("ConsentClient.create()", patient);
        Files.writeString(source, code.replaceAll("class \\w+ \\{", "class Example {"));
        run(source.getParent(), "javac", "-cp", classPath, "Example.java");
        String said = example(source.getParent(), classPath, sidecar.address());
        assertFalse(said.contains("Exception"), () -> name + ": " + said);
        if (name.equals("Example0")) {
          assertEquals("denied: NO_CONSENT", said.strip());
        }
      }
    }
    assertTrue(count >= 5, "examples: " + count);
  }

  private static String example(Path folder, String classPath, String address) {
    try {
      var process =
          new ProcessBuilder("java", "-cp", "." + File.pathSeparator + classPath, "Example")
              .directory(folder.toFile())
              .redirectErrorStream(true);
      process.environment().put("CONSENTD_ADDR", address);
      Process started = process.start();
      String said = new String(started.getInputStream().readAllBytes());
      assertEquals(0, started.waitFor(), said);
      return said;
    } catch (IOException | InterruptedException e) {
      throw new IllegalStateException(e);
    }
  }
}
