// Does something again and again while somebody looks at the page.

/** Runs `task` every `ms`, one at a time, and at once when the page is shown again. Returns what has it run anew. */
export function poll(task, ms) {
  let timer = 0;
  let isRunning = false;
  let isDue = false;
  const run = async () => {
    isDue = true;
    if (isRunning) return;
    clearTimeout(timer);
    isRunning = true;
    while (isDue) {
      isDue = false;
      await task();
    }
    isRunning = false;
    if (!document.hidden) timer = setTimeout(run, ms);
  };
  document.addEventListener("visibilitychange", () => document.hidden || run());
  run();
  return run;
}

/** Runs tasks so many at a time, in order. */
export function limited(most) {
  const waiting = [];
  let numRunning = 0;
  const next = () => {
    if (numRunning >= most || !waiting.length) return;
    numRunning += 1;
    waiting.shift()().finally(() => {
      numRunning -= 1;
      next();
    });
  };
  return (task) => {
    waiting.push(task);
    next();
  };
}
