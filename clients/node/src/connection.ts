import { readFileSync } from 'node:fs';
import {
  Channel,
  connectivityState,
  credentials,
  type ChannelCredentials,
  type Interceptor,
} from '@grpc/grpc-js';

/** The files of TLS, each in PEM. They are read when the client is made. */
export interface TlsOptions {
  /** The CA certificates to trust. Unset: those that Node trusts. */
  caFile?: string | undefined;
  /** This client's certificate, with those of its intermediate CAs after it. */
  certFile?: string | undefined;
  /** The key of that certificate. */
  keyFile?: string | undefined;
}

/** What a connection is made from. */
export interface ConnectionOptions {
  address: string;
  tls: boolean | TlsOptions;
}

const DEFAULT_ADDRESS = '127.0.0.1:50051';

/** The address that a client asks where none is given. */
export function defaultAddress(): string {
  return process.env.CONSENTD_ADDR || DEFAULT_ADDRESS;
}

/** An address of consentd in the notation of grpc-js. */
export function targetOf(address: string): string {
  if (address.startsWith('unix:@')) {
    if (Number(process.versions.node.split('.')[0]) < FIRST_WITH_ABSTRACT_SOCKETS) {
      throw new TypeError('an abstract socket takes Node 22 or later: use a path, unix:PATH');
    }
    return `unix:\0${address.slice('unix:@'.length)}`;
  }
  if (/^unix:[^\0]+$/.test(address)) return address;
  // Named as DNS, as grpc-js would take the host for the scheme of a URI where it has such a scheme.
  if (/^(\[[0-9a-fA-F:.%]+\]|[^\s/:[\]]+):\d{1,5}$/.test(address)) return `dns:${address}`;
  throw new TypeError('the address must be HOST:PORT, unix:PATH or unix:@NAME');
}

// Node before this version pads the name of an abstract socket with zero bytes, which makes it
// another name.
const FIRST_WITH_ABSTRACT_SOCKETS = 22;

function credentialsOf({ address, tls }: ConnectionOptions): ChannelCredentials {
  // A Unix socket never speaks TLS: who may connect is the file system's business.
  if (!tls || address.startsWith('unix:')) return credentials.createInsecure();
  const { caFile, certFile, keyFile }: TlsOptions = tls === true ? {} : tls;
  const read = (file: string | undefined) => (file === undefined ? null : readFileSync(file));
  return credentials.createSsl(read(caFile), read(keyFile), read(certFile));
}

/** Opens the one channel of a client, which connects at once, and again whenever it has to. */
export function open(options: ConnectionOptions): Channel {
  const channel = new Channel(targetOf(options.address), credentialsOf(options), {
    // A proxy is not for a sidecar, but grpc-js would use http_proxy, for loopback too.
    'grpc.enable_http_proxy': 0,
    'grpc.service_config_disable_resolution': 1,
    'grpc.initial_reconnect_backoff_ms': 20,
    'grpc.max_reconnect_backoff_ms': 1_000,
    'grpc.keepalive_time_ms': 30_000,
    'grpc.keepalive_timeout_ms': 10_000,
    'grpc.keepalive_permit_without_calls': 1,
    'grpc.client_idle_timeout_ms': 2 ** 31 - 1,
    // Calls are repeated here, where their deadlines are known.
    'grpc.enable_retries': 0,
    // A connection of its own, which ends when the client is closed.
    'grpc.use_local_subchannel_pool': 1,
    'grpc.enable_channelz': 0,
  });
  stayConnected(channel);
  return channel;
}

/** grpc-js leaves a lost connection until the next call, which would then have to wait for it. */
function stayConnected(channel: Channel): void {
  // A channel that is closed would connect again if it was asked to.
  if (channel.getConnectivityState(false) === connectivityState.SHUTDOWN) return;
  const state = channel.getConnectivityState(true);
  channel.watchConnectivityState(state, Infinity, () => setImmediate(stayConnected, channel));
}

export type { Interceptor };
