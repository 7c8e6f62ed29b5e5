"""A scheduler as an environment.

Jobs arrive at a cluster of two unlike machines, and the policy says which job starts where.

Each job takes another time on each machine (one of them has an accelerator, say, that half of the jobs profit from).
All that counts is how long jobs spend in the system: the reward of a time step is minus a tenth of the number of jobs
that are there, so that the return is minus a tenth of the sum of all their times (Little's law; Mao et al. 2016,
"Resource Management with Deep Reinforcement Learning", has the same idea).
"""

import gymnasium
import numpy as np

NUM_SLOTS = 5  # waiting jobs that the policy sees; more wait behind them
NUM_MACHINES = 2
MOST_STEPS = 400  # decisions of an episode


class Scheduling(gymnasium.Env):
    """Actions: slot * NUM_MACHINES + machine starts the job in that slot on that machine.

    The last one waits a time step.

    Starting a job takes no time, so both machines can be filled in one time step. What cannot be done (an empty slot, a
    busy machine) counts as waiting. Observation, float32, all in tenths (of time steps, of jobs): for each slot both
    durations and the age of the job plus one (an empty slot has zeros), for each machine its remaining time, and the
    number of jobs behind the slots.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 12}  # noqa: RUF012

    def __init__(self, num_jobs=20, mean_gap=3.0, render_mode=None):
        self.num_jobs, self.mean_gap, self.render_mode = num_jobs, mean_gap, render_mode
        self.action_space = gymnasium.spaces.Discrete(NUM_SLOTS * NUM_MACHINES + 1)
        size = NUM_SLOTS * (NUM_MACHINES + 1) + NUM_MACHINES + 1
        self.observation_space = gymnasium.spaces.Box(0.0, np.inf, (size,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        draw = self.np_random
        self.arrivals = np.floor(np.cumsum(draw.exponential(self.mean_gap, self.num_jobs))).astype(int)
        base = draw.integers(2, 9, self.num_jobs)
        # Half of the jobs are three times slower on one machine, the other half on the other one.
        suited = draw.integers(0, NUM_MACHINES, self.num_jobs)
        self.durations = np.where(np.arange(NUM_MACHINES) == suited[:, None], base[:, None], 3 * base[:, None])
        self.now, self.steps = 0, 0
        self.waiting, self.coming = [], list(range(self.num_jobs))
        self.free_at, self.started = np.zeros(NUM_MACHINES, int), []  # started: (job, machine, from, until)
        self._arrive()
        return self._observation(), {}

    def step(self, action):
        self.steps += 1
        slot, machine = divmod(int(action), NUM_MACHINES)
        if slot < min(NUM_SLOTS, len(self.waiting)) and self.free_at[machine] <= self.now:
            job = self.waiting.pop(slot)
            self.free_at[machine] = self.now + self.durations[job, machine]
            self.started.append((job, machine, self.now, int(self.free_at[machine])))
            reward = 0.0
        else:
            reward = -self._in_system() / 10
            self.now += 1
            self._arrive()
        done = not self.coming and not self._in_system()
        return self._observation(), reward, done, not done and self.steps >= MOST_STEPS, {}

    def _arrive(self):
        while self.coming and self.arrivals[self.coming[0]] <= self.now:
            self.waiting.append(self.coming.pop(0))

    def _in_system(self):
        return len(self.waiting) + sum(until > self.now for *_, until in self.started)

    def _observation(self):
        slots = np.zeros((NUM_SLOTS, NUM_MACHINES + 1), np.float32)
        for slot, job in enumerate(self.waiting[:NUM_SLOTS]):
            slots[slot] = [*(self.durations[job] / 10), (self.now - self.arrivals[job]) / 10 + 0.1]
        busy = np.maximum(self.free_at - self.now, 0) / 10
        behind = max(len(self.waiting) - NUM_SLOTS, 0) / 10
        return np.concatenate([slots.ravel(), busy, [behind]]).astype(np.float32)

    def render(self):
        """uint8 (height, width, 3): a row for each machine, time from left to right, the waiting jobs below."""
        from PIL import Image, ImageDraw

        colours = ["#2563a8", "#d97706", "#4f9d69", "#a83279", "#6b7280", "#0e7490"]
        scale, width = 4, 4 * 110
        picture = Image.new("RGB", (width, 120), "white")
        draw = ImageDraw.Draw(picture)
        left = max(0, self.now * scale - width * 2 // 3)
        for job, machine, begin, until in self.started:
            top = 8 + 34 * machine
            draw.rectangle(
                (begin * scale - left, top, min(until, self.now) * scale - left, top + 26), colours[job % 6], "white"
            )
        for slot, job in enumerate(self.waiting):
            draw.rectangle((8 + 22 * slot, 86, 26 + 22 * slot, 104), colours[job % 6])
        draw.line((self.now * scale - left, 0, self.now * scale - left, 76), "#111827")
        draw.text((width - 150, 106), f"time {self.now}, waiting {len(self.waiting)}", "#111827")
        return np.asarray(picture)


def shortest_job_first(environment):
    """The action of the rule that people use: of all waiting jobs and free machines, the pair that ends soonest."""
    pairs = [
        (environment.durations[job, machine], slot * NUM_MACHINES + machine)
        for slot, job in enumerate(environment.waiting[:NUM_SLOTS])
        for machine in range(NUM_MACHINES)
        if environment.free_at[machine] <= environment.now
    ]
    return min(pairs)[1] if pairs else NUM_SLOTS * NUM_MACHINES


def any_action(environment):
    return environment.action_space.sample()


def make_environment(name, **options):
    """An environment by its name.

    Observations that are no array, such as the number of a state, are flattened to a vector (one-hot).
    """
    made = Scheduling(**options) if name == "scheduling" else gymnasium.make(name, **options)
    space = made.observation_space
    if not isinstance(space, gymnasium.spaces.Box) and space.is_np_flattenable:
        made = gymnasium.wrappers.FlattenObservation(made)
    if not isinstance(made.observation_space, gymnasium.spaces.Box):
        return made  # a graph, a sequence: settings.py refuses them
    # Networks calculate in float32, and RLlib hands on what it gets.
    return made if made.observation_space.dtype == np.float32 else gymnasium.wrappers.DtypeObservation(made, np.float32)


def returns_of(name, policy, num_episodes, seed):
    """Returns of so many episodes in which `policy(environment)` gives the actions.

    The learnt policy is compared with them.
    """
    environment, found = make_environment(name), []
    environment.action_space.seed(seed)
    for episode in range(num_episodes):
        environment.reset(seed=seed + episode)
        total, over = 0.0, False
        while not over:
            _, reward, ended, cut, _ = environment.step(policy(environment))
            total, over = total + float(reward), ended or cut
        found.append(total)
    environment.close()
    return found
