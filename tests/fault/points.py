"""The crash points, by name: where in its life a process gets SIGKILL. docs/testing.md shows them, and has to."""

from tests.fault.inject.faults import AGENT, TRAINER, Fault

CHECKPOINTER = "holdfast.trainer.checkpointer:Checkpointer"
SAVES = "holdfast.trainer.saves:Saves"
SESSION = "holdfast.trainer.session:Session"
SLOTS = "holdfast.trainer.slots:Slots"
STAGE = "holdfast.trainer.plan:StagePlan.stage"
MOVE = "holdfast.trainer.move:move"
COPY = "holdfast.trainer.filling:copy"
FILL = "holdfast.trainer.portions:Filling.fill"
FINISH = "holdfast.trainer.apply:LoadPlan.finish"
CHECK = "holdfast.trainer.fill:check_block"
DIRECT = "holdfast.trainer.direct:DirectLoad"
FETCHED = "holdfast.trainer.load:Loader._fetch"
CLAIMING = "holdfast.agent.claiming:Claiming"
CONTENTS = "holdfast.agent.contents:Contents"
KEEPING = "holdfast.agent.keeping:Keeping"
EXECUTOR = "holdfast.agent.executor:Executor"
FETCHING = "holdfast.agent.fetching:Fetching"
LOADING = "holdfast.agent.loading:Loading"
TIER = "holdfast.tiers.posix.tier:PosixTier"
UPLOAD = "holdfast.tiers.posix.upload:PosixUpload"
POOL = "holdfast.tiers.posix.recycle:Pool"
PUBLISH = "holdfast.store.commit:publish_manifest"

Points = dict[str, Fault]

# A trainer that takes up a run which three saves stand behind. Its third save is the one that is hit.
TRAINER_POINTS: Points = {
    "attaching": Fault(TRAINER, f"{SESSION}._tie", "after"),
    "preparing": Fault(TRAINER, f"{SESSION}.prepare"),
    "prepared": Fault(TRAINER, f"{SESSION}.prepare", "after"),
    "faulting its slots": Fault(TRAINER, "holdfast.wire.mapped:populate"),
    "claiming": Fault(TRAINER, f"{SAVES}._claim"),
    "claimed": Fault(TRAINER, f"{SAVES}._claim", "after"),
    "slot taken": Fault(TRAINER, f"{SLOTS}.take", "after", 3),
    "before the copy": Fault(TRAINER, STAGE, "before", 3),
    "amid the copy": Fault(TRAINER, MOVE, "amid", 3),
    "copied, not staged": Fault(TRAINER, COPY, "after", 3),
    "staged, not returned": Fault(TRAINER, STAGE, "after", 3),
    "waiting for a save": Fault(TRAINER, "holdfast.trainer.save:Save.wait", "before", 4),
    "closing": Fault(TRAINER, f"{CHECKPOINTER}._await_end"),
    "closed, not let go": Fault(TRAINER, f"{CHECKPOINTER}._await_end", "after"),
}

# Trainer and agent are new; the memory of those before them is there.
RESTART_POINTS: Points = {
    "trainer found what loads": Fault(TRAINER, "holdfast.trainer.load:Loader._loadable", "after"),
    "trainer has the images": Fault(TRAINER, FETCHED, "after"),
    "before filling": Fault(TRAINER, FILL),
    "amid filling": Fault(TRAINER, CHECK, "after", 2),
    "filled and proven": Fault(TRAINER, FILL, "after"),
    "applied": Fault(TRAINER, FINISH, "after"),
    "agent admits": Fault(AGENT, "holdfast.agent.admission:Admission.launch"),
    "agent admitted": Fault(AGENT, "holdfast.agent.admission:Admission.launch", "after"),
    "agent adopts": Fault(AGENT, "holdfast.agent.agent:Agent._adopt_slots"),
    "agent verifies what it adopted": Fault(AGENT, "holdfast.agent.executor:check_image"),
    "agent verified": Fault(AGENT, "holdfast.agent.executor:check_image", "after"),
    "agent told what loads": Fault(AGENT, f"{LOADING}.loadable", "after"),
    "agent asked for images": Fault(AGENT, f"{LOADING}.fetch"),
    "agent unpins": Fault(AGENT, f"{LOADING}.unpinned"),
    "agent rolls forward": Fault(AGENT, f"{KEEPING}.roll_forward"),
    "agent rolled forward": Fault(AGENT, f"{KEEPING}.roll_forward", "after"),
    "agent tidies": Fault(AGENT, f"{KEEPING}.tidy", "after"),
}

# The same with one rank, which reads by itself.
DIRECT_POINTS: Points = {
    "agent says where it stands": Fault(AGENT, f"{LOADING}.place", "after"),
    "trainer opened the images": Fault(TRAINER, f"{DIRECT}._plan"),
    "trainer checks a part": Fault(TRAINER, "holdfast.format.blocks:BlockTable.check", "before", 2),
    "trainer filled by itself": Fault(TRAINER, f"{DIRECT}._fill", "after"),
}

# Trainers, agent and arena are new: everything comes from the file tier. Both ranks need all of it.
COLD_POINTS: Points = {
    "agent makes room for an image": Fault(AGENT, f"{FETCHING}._room", "after"),
    "agent reads an image": Fault(AGENT, f"{CONTENTS}.fetch"),
    "agent checks a part": Fault(AGENT, "holdfast.format.blocks:BlockTable.check", "before", 2),
    "agent read, holds not yet": Fault(AGENT, f"{CONTENTS}.fetch", "after"),
    "agent holds what it read": Fault(AGENT, f"{FETCHING}._hold", "after"),
    "trainer has proven what came": Fault(TRAINER, FILL, "after"),
}

# An agent with a trainer that goes on training.
AGENT_POINTS: Points = {
    "preparing": Fault(AGENT, "holdfast.agent.dealing:Dealing.prepare"),
    "dealing": Fault(AGENT, "holdfast.agent.dealing:Dealing._deal"),
    "claiming": Fault(AGENT, f"{CLAIMING}.claim"),
    "claimed, not told": Fault(AGENT, f"{CLAIMING}.claim", "after"),
    "before sealing": Fault(AGENT, "holdfast.agent.executor:seal_image", "before", 3),
    "sealed": Fault(AGENT, "holdfast.agent.executor:seal_image", "after", 3),
    "before held": Fault(AGENT, f"{EXECUTOR}._hold", "before", 3),
    "held": Fault(AGENT, f"{EXECUTOR}._hold", "after", 3),
    "before a flush": Fault(AGENT, f"{KEEPING}.upload", "before", 2),
    "between the parts of a flush": Fault(AGENT, f"{UPLOAD}.write", "after", 6),
    "before an image is published": Fault(AGENT, f"{UPLOAD}.publish", "before", 4),
    "synced, not renamed": Fault(AGENT, f"{TIER}.move", "before", 4),
    "renamed, directory not synced": Fault(AGENT, f"{TIER}.move", "after", 4),
    "published": Fault(AGENT, f"{KEEPING}.upload", "after", 2),
    "checking coverage": Fault(AGENT, f"{KEEPING}.check_whole", "after", 2),
    "before the manifest": Fault(AGENT, PUBLISH, "before", 2),
    "the manifest stands, nobody told": Fault(AGENT, PUBLISH, "after", 2),
    "before a slot is freed": Fault(AGENT, f"{EXECUTOR}._free"),
    "a slot was freed": Fault(AGENT, f"{EXECUTOR}._free", "after"),
    "before a prune": Fault(AGENT, f"{KEEPING}.prune"),
    "before the tombstone": Fault(AGENT, "holdfast.store.prune:_delete"),
    "tombstone put": Fault(AGENT, f"{TIER}.delete", "before", 1),
    "manifest deleted": Fault(AGENT, f"{TIER}.delete", "after", 1),
    "images deleted": Fault(AGENT, f"{TIER}.delete", "before", 3),
    "tombstone deleted": Fault(AGENT, "holdfast.store.prune:_delete", "after"),
    "asked to close": Fault(AGENT, "holdfast.agent.closing:Closing.close_rank"),
    "the end": Fault(AGENT, "holdfast.agent.closing:Closing.ended"),
    "memory not yet given back": Fault(AGENT, "holdfast.agent.arena:Arena.destroy"),
}

# The newest step was due in memory only; its job ends, and the agent brings it to the file tier.
PROMOTION_POINTS: Points = {
    "asked to promote": Fault(AGENT, "holdfast.lifecycle.flushes:Flushes.promote"),
    "amid the promoted image": Fault(AGENT, f"{UPLOAD}.write", "after", 5),
    "promoted, not committed": Fault(AGENT, PUBLISH, "before", 2),
    "promoted and committed": Fault(AGENT, PUBLISH, "after", 2),
}

# Rank 1 of two; the launcher then kills rank 0, which may wait for it in a collective.
RANK_POINTS: Points = {
    "rank 1 attaching": Fault(TRAINER, f"{SESSION}._tie", "after", rank=1),
    "rank 1 prepared": Fault(TRAINER, f"{SESSION}.prepare", "after", rank=1),
    "rank 1 before filling": Fault(TRAINER, FILL, rank=1),
    "rank 1 claiming": Fault(TRAINER, f"{SAVES}._claim", rank=1),
    "rank 1 before its copy": Fault(TRAINER, STAGE, "before", 3, rank=1),
    "rank 1 staged, not returned": Fault(TRAINER, STAGE, "after", 3, rank=1),
    "rank 1 closing": Fault(TRAINER, f"{CHECKPOINTER}._await_end", rank=1),
}

# As above, on a disk of the node's own, where files are used again. One image per step: the second prune is hit.
RECYCLING_POINTS: Points = {
    "before an image loses its name": Fault(AGENT, f"{POOL}.move_in", "before", 4),
    "an image lost its name": Fault(AGENT, f"{POOL}.move_in", "after", 4),
    "its removal is durable": Fault(AGENT, f"{POOL}.keep", "before", 2),
    "before an old file is given away": Fault(AGENT, f"{POOL}._take", "after", 8),
    "an old file was given away": Fault(AGENT, "holdfast.tiers.posix.recycle:_move", "after", 2),
    "an old file is half written over": Fault(AGENT, f"{UPLOAD}.write", "after", 17),
}

ALL = {
    "trainer": TRAINER_POINTS,
    "restart": RESTART_POINTS,
    "cold start": COLD_POINTS,
    "a rank by itself": DIRECT_POINTS,
    "agent": AGENT_POINTS,
    "recycling": RECYCLING_POINTS,
    "promotion": PROMOTION_POINTS,
    "two ranks": RANK_POINTS,
}
