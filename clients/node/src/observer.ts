/** What became of a check. It never names the user. */
export interface CheckOutcome {
  /** Whether the message may be sent. */
  readonly allowed: boolean;
  /** `allowed`, the reason of a denial, or, where nothing was decided, the name of the gRPC code. */
  readonly outcome: string;
  /** How long the caller waited, in milliseconds. */
  readonly durationMs: number;
}

/**
 * Is told what checks come to, for metrics. It runs between the sidecar's answer and the caller: it
 * should only count. What it throws is reported as a warning of the process, and changes no verdict.
 */
export interface Observer {
  /** A check has its verdict. */
  onCheck?(outcome: CheckOutcome): void;
  /** A call goes to the sidecar with so many checks: 1 to 1,000. */
  onBatch?(size: number): void;
}

/** Tells an observer, whose fault must not become the caller's. */
export function tell(observe: () => void): void {
  try {
    observe();
  } catch (error) {
    process.emitWarning(`an observer of consentd threw: ${error}`, { code: 'CONSENTD_OBSERVER' });
  }
}
