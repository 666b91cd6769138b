import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

/** How a sidecar is run. */
export interface SidecarOptions {
  /** The binary: by default `CONSENTD_BIN`, and else `consentd` on the path. */
  binary?: string | undefined;
  /** More arguments of `consentd serve`. They come after those that it is run with, and may replace them. */
  args?: readonly string[] | undefined;
  /** How long its table may take to load, in milliseconds: 60,000 by default. */
  timeoutMs?: number | undefined;
  /** Whether to wait until the table is loaded: true by default. */
  waitUntilLoaded?: boolean | undefined;
}

const START_TIMEOUT_MS = 60_000;
const KEPT_LINES = 20;

/**
 * The real sidecar on a ledger of its own in a temporary folder. It ends with this process, if not before.
 *
 * ```ts
 * const sidecar = await Sidecar.start();
 * const client = new Client({ address: sidecar.address });
 * …
 * client.close();
 * await sidecar.close();
 * ```
 */
export class Sidecar {
  /** A temporary folder, which is removed at the end. It has the ledger and the Unix socket. */
  readonly folder = mkdtempSync(join(tmpdir(), 'consentd-'));
  private process: ChildProcess | undefined;
  private tcpAddress = '';
  /** The last lines of the sidecar's log, for errors. */
  private readonly log: string[] = [];
  private readonly onExit = () => this.dispose();

  private constructor(private readonly options: SidecarOptions) {
    process.on('exit', this.onExit);
  }

  /**
   * Starts a sidecar, and waits until it answers checks.
   *
   * @throws Error - the binary is missing, or it ended, or its table was not loaded in time.
   */
  static async start(options: SidecarOptions = {}): Promise<Sidecar> {
    const sidecar = new Sidecar(options);
    try {
      await sidecar.restart();
    } catch (error) {
      await sidecar.close();
      throw error;
    }
    return sidecar;
  }

  /** Where it is served over TCP: `127.0.0.1:PORT`. The same after a restart. */
  get address(): string {
    return this.tcpAddress;
  }

  /** Where it is served on a Unix socket: `unix:PATH`. */
  get unixAddress(): string {
    return `unix:${join(this.folder, 'consentd.sock')}`;
  }

  /** The id of the process; unset while none runs. */
  get pid(): number | undefined {
    return this.process?.pid;
  }

  /** Starts it again on the same ledger and addresses, after it was stopped or killed. */
  async restart(): Promise<void> {
    if (this.process) throw new Error('the sidecar runs already');
    const { binary = process.env.CONSENTD_BIN || 'consentd' } = this.options;
    const { args = [], timeoutMs = START_TIMEOUT_MS, waitUntilLoaded = true } = this.options;
    const child = spawn(binary, ['serve', ...this.usualArguments(args), ...args], {
      stdio: ['ignore', 'ignore', 'pipe'],
      cwd: this.folder,
      env: environment(),
    });
    this.process = child;
    child.on('exit', () => {
      if (this.process === child) this.process = undefined;
    });
    const timer = setTimeout(() => child.kill('SIGKILL'), timeoutMs);
    try {
      await this.started(child, binary, waitUntilLoaded);
    } finally {
      clearTimeout(timer);
    }
  }

  /** Ends it as an operator does (SIGTERM): it finishes the calls that it has. */
  async stop(): Promise<void> {
    this.resume();
    await this.end('SIGTERM');
  }

  /** Ends it at once (SIGKILL). */
  async kill(): Promise<void> {
    await this.end('SIGKILL');
  }

  /** Stops it in the middle of whatever it does (SIGSTOP), until it is resumed: it answers nothing. */
  async pause(): Promise<void> {
    const pid = this.process?.pid;
    if (pid === undefined || !this.process?.kill('SIGSTOP')) {
      return;
    }
    // The signal is sent before it is delivered: a thread may go on for a moment, and still answer.
    const deadline = Date.now() + START_TIMEOUT_MS;
    while (!isStopped(pid)) {
      if (Date.now() > deadline) {
        throw new Error('the sidecar does not stop');
      }
      await sleep(1);
    }
  }

  /** Lets it go on (SIGCONT). */
  resume(): void {
    this.process?.kill('SIGCONT');
  }

  /** Kills it, and removes its folder. */
  async close(): Promise<void> {
    await this.kill();
    process.off('exit', this.onExit);
    this.dispose();
  }

  private usualArguments(args: readonly string[]): string[] {
    const usual = {
      '--listen': this.tcpAddress || '127.0.0.1:0',
      '--unix': join(this.folder, 'consentd.sock'),
      '--admin': '127.0.0.1:0',
      '--ledger': `file:${join(this.folder, 'consentd.redb')}`,
    };
    return Object.entries(usual).flatMap((pair) => (args.includes(pair[0]) ? [] : pair));
  }

  /** Follows the log until it says that the sidecar serves. */
  private async started(child: ChildProcess, binary: string, loaded: boolean): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      child.on('error', (error: NodeJS.ErrnoException) => {
        this.process = undefined;
        const missing = `${binary} is not there: install consentd, or name it in CONSENTD_BIN`;
        reject(error.code === 'ENOENT' ? new Error(missing) : error);
      });
      child.on('close', () => {
        reject(new Error(`consentd ended before it served:\n${this.log.join('\n')}`));
      });
      createInterface({ input: child.stderr! }).on('line', (line) => {
        this.log.push(line);
        if (this.log.length > KEPT_LINES) this.log.shift();
        const { message, grpc } = parsed(line);
        if (message === 'listening' && grpc) [this.tcpAddress] = grpc.split(',');
        if (message === (loaded ? 'the table holds the ledger' : 'listening')) resolve();
      });
    });
  }

  private async end(signal: NodeJS.Signals): Promise<void> {
    const child = this.process;
    if (!child) return;
    const ended = once(child, 'exit');
    child.kill(signal);
    await ended;
  }

  private dispose(): void {
    this.process?.kill('SIGKILL');
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** The environment without the settings of another sidecar, such as where its ledger is. */
function environment(): NodeJS.ProcessEnv {
  const others = Object.entries(process.env).filter(([name]) => !name.startsWith('CONSENTD_'));
  return Object.fromEntries(others);
}

function parsed(line: string): { message?: string; grpc?: string } {
  try {
    return JSON.parse(line);
  } catch {
    return {}; // Not all lines of a process that fails are its log's.
  }
}

/** Whether each thread of a process is in the state T; true where the system has no /proc to ask. */
function isStopped(pid: number): boolean {
  const threads = `/proc/${pid}/task`;
  if (!existsSync(threads)) {
    return true;
  }
  try {
    // The state comes after the program's name, which is in brackets and may contain any.
    return readdirSync(threads)
      .map((thread) => readFileSync(join(threads, thread, 'stat'), 'utf8'))
      .every((stat) => stat.startsWith(') T', stat.lastIndexOf(')')));
  } catch {
    return false; // A thread ended while it was looked at.
  }
}
