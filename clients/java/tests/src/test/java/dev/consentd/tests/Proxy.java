package dev.consentd.tests;

import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;

/** Passes bytes on to a sidecar, and breaks its connections when a test says so. */
final class Proxy implements AutoCloseable {
  private volatile ServerSocket listener;
  private final Set<Socket> sockets = ConcurrentHashMap.newKeySet();
  private final int port;

  Proxy(String address) throws IOException {
    port = Integer.parseInt(address.substring(address.lastIndexOf(':') + 1));
    listen(0);
  }

  private void listen(int at) throws IOException {
    listener = new ServerSocket(at, 50, InetAddress.getLoopbackAddress());
    start(this::accept);
  }

  String address() {
    return "127.0.0.1:" + listener.getLocalPort();
  }

  /** Refuses connections. */
  void stop() throws IOException {
    close();
  }

  /** Takes connections again, at the same address. */
  void restart() throws IOException {
    listen(listener.getLocalPort());
  }

  void breakConnections() throws IOException {
    for (Socket socket : sockets) {
      socket.close();
      sockets.remove(socket);
    }
  }

  private static void start(Runnable work) {
    var thread = new Thread(work);
    thread.setDaemon(true);
    thread.start();
  }

  private void accept() {
    try {
      for (; ; ) {
        Socket client = listener.accept();
        var server = new Socket(InetAddress.getLoopbackAddress(), port);
        sockets.add(client);
        sockets.add(server);
        start(() -> pass(client, server));
        start(() -> pass(server, client));
      }
    } catch (IOException e) {
      // Closed.
    }
  }

  private static void pass(Socket from, Socket to) {
    try (from;
        to) {
      from.getInputStream().transferTo(to.getOutputStream());
    } catch (IOException e) {
      // Broken.
    }
  }

  @Override
  public void close() throws IOException {
    listener.close();
    breakConnections();
  }
}
