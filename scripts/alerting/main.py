"""Fires the alerts of deploy/prometheus one by one, each in namespaces of its own; called by scripts/alerts."""
import argparse, json, os, re, subprocess, sys, tempfile, traceback
from concurrent.futures import ThreadPoolExecutor

import ledgers, listeners
import stage

SCENARIOS = {**ledgers.SCENARIOS, **listeners.SCENARIOS}
# The longest that one alert may take: half of them wait for a window of a minute or two to pass.
TIMEOUT = 420


def play(name, options):
    """Plays one scenario in this process, which has namespaces of its own, and prints what came of it as JSON."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    how, scenario = SCENARIOS[name]
    result = {"alert": name, "how": how}
    with stage.Stage(name, options.binary, options.prometheus, options.folder) as on:
        try:
            scenario(on)
            missing = [part for part in ("fired", "ended") if getattr(on, part) is None]
            assert not missing, f"the scenario did not say that it has {missing}"
        except Exception as error:
            traceback.print_exc()
            result["error"] = f"{type(error).__name__}: {str(error).strip()[:300] or 'no words'}"
        result |= {"fired": on.fired, "ended": on.ended, "commands": on.commands, "elsewhere": on.elsewhere,
                   "besides": sorted(on.besides)}
    print(json.dumps(result))


def start(name, options, folder):
    os.makedirs(folder)
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable,
               os.path.abspath(__file__), "--binary", options.binary, "--prometheus", options.prometheus,
               "--inside", name, "--folder", folder]
    with open(os.path.join(folder, "scenario.log"), "w") as log:
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True,
                                  timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            return {"alert": name, "how": SCENARIOS[name][0], "error": f"it took longer than {TIMEOUT} s"}
    try:
        return json.loads(done.stdout.strip().split("\n")[-1])
    except ValueError:
        return {"alert": name, "how": SCENARIOS[name][0], "error": f"it ended with {done.returncode}, without a result"}


def row(result):
    def seconds(name):
        return "–" if result.get(name) is None else f"{result[name]:.0f} s"
    commands = str(len(result.get("commands", [])))
    if result.get("elsewhere"):
        commands += f", and {len(result['elsewhere'])} that need another machine"
    what = "FAILS: " + result["error"].replace("\n", " ").replace("|", "/") if "error" in result else result["how"]
    return f"| {result['alert']} | {what} | {seconds('fired')} | {commands} | {seconds('ended')} |"


def main():
    parser = argparse.ArgumentParser(prog="scripts/alerts", description="Fires each alert on a real Prometheus.")
    parser.add_argument("--binary", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--prometheus", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--only", metavar="NAME", action="append", help="only this alert; may be repeated")
    parser.add_argument("--jobs", metavar="N", type=int, default=4, help="so many at a time")
    parser.add_argument("--keep", metavar="FOLDER", help="keep logs and transcripts there")
    options = parser.parse_args()
    if options.inside:
        return play(options.inside, options)
    alerts = re.findall(r"- alert: (\S+)", stage.RULES)
    assert sorted(alerts) == sorted(SCENARIOS), f"without a scenario, or without an alert: {set(alerts) ^ set(SCENARIOS)}"
    for name in options.only or []:
        if name not in alerts:
            parser.error(f"--only {name}: one of {', '.join(alerts)}")
    chosen = [name for name in alerts if name in (options.only or alerts)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or temporary
        print("| alert | made to fire by | fired after | commands of its runbook | ended after the mend |\n|---|---|---|---|---|", flush=True)
        failed = 0
        with ThreadPoolExecutor(options.jobs) as pool:
            tasks = [pool.submit(start, name, options, os.path.join(folder, name)) for name in chosen]
            for task in tasks:
                result = task.result()
                failed += "error" in result
                print(row(result), flush=True)
        print(f"\n{len(chosen) - failed} of {len(chosen)} alerts fired, and ended when what their runbooks say had been done.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
