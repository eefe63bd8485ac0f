//! Programs that copy.

use crate::matrix::{Program, run_matrix};
use crate::needs_mounts;

const COPIERS: &[Program] = &[
    Program {
        name: "cp",
        needs: &["cp"],
        steps: &[
            ("cp $SRC/data f; cp $SRC/text g", &["f", "g"]),
            // Over an existing file it writes into the same inode; -f would, too, as long as that opens.
            ("cp $SRC/more f; cp -f $SRC/data g", &["f", "g"]),
            (
                "cp --remove-destination $SRC/text f; cp -r $SRC/tree .",
                &["f", "tree/one", "tree/sub/two", "tree/sub/three"],
            ),
            // Inside the mount, and a copy of what is already sent.
            ("cp f h; cp --sparse=always g i", &["h", "i"]),
        ],
    },
    Program {
        name: "cp -p",
        needs: &["cp"],
        steps: &[("cp -p $SRC/data f", &["f"]), ("cp -p $SRC/more f", &["f"])],
    },
    Program {
        name: "cp -a",
        needs: &["cp"],
        steps: &[
            (
                "cp -a $SRC/tree .",
                &["tree/one", "tree/sub/two", "tree/sub/three"],
            ),
            (
                "cp -a $SRC/tree copy",
                &["copy/one", "copy/sub/two", "copy/sub/three"],
            ),
        ],
    },
    Program {
        name: "mv from another file system",
        needs: &["mv"],
        steps: &[
            (
                "cp $SRC/data $TMP/f; mv $TMP/f f; cp -r $SRC/tree $TMP; mv $TMP/tree .",
                &["f", "tree/one", "tree/sub/two", "tree/sub/three"],
            ),
            ("cp $SRC/more $TMP/f; mv $TMP/f f", &["f"]),
        ],
    },
    Program {
        name: "hidden, then mv",
        needs: &["mv"],
        steps: &[
            (
                "cp $SRC/data .f; mv .f f; cp $SRC/text g.part; mv g.part g",
                &["f", "g"],
            ),
            ("cp $SRC/more .f; mv .f f; mv g .g", &["f"]),
        ],
    },
    Program {
        name: "install",
        needs: &["install"],
        steps: &[
            (
                "install -m 755 $SRC/data f; install -D -m 644 $SRC/text deep/er/g",
                &["f +", "deep/er/g"],
            ),
            (
                "install -m 755 $SRC/more f; install -C -m 644 $SRC/text deep/er/g",
                &["f +"],
            ),
        ],
    },
    Program {
        name: "dd",
        needs: &["dd"],
        steps: &[
            (
                "dd if=$SRC/data of=f bs=4k status=none; dd if=$SRC/more of=g bs=1k conv=fsync status=none",
                &["f", "g"],
            ),
            (
                "dd if=$SRC/more of=f bs=1k seek=20 conv=notrunc status=none; dd if=$SRC/more of=g oflag=append conv=notrunc status=none",
                &["f", "g"],
            ),
            ("dd if=/dev/null of=f bs=1k seek=30 status=none", &["f"]),
        ],
    },
    Program {
        name: "shell redirection",
        needs: &["bash"],
        steps: &[
            (
                "echo one > f; { echo a; cat $SRC/text; /bin/echo b; } > g",
                &["f", "g"],
            ),
            (
                "echo two >> f; for n in 1 2 3; do /bin/echo $n; done >> g",
                &["f", "g"],
            ),
            ("cat < g > f; : > g; set -C; echo new > h", &["f", "g", "h"]),
        ],
    },
    Program {
        name: "tee",
        needs: &["tee"],
        steps: &[
            ("cat $SRC/data | tee f g > /dev/null", &["f", "g"]),
            ("cat $SRC/more | tee -a f > /dev/null", &["f"]),
        ],
    },
    Program {
        name: "rsync",
        needs: &["rsync"],
        steps: &[
            (
                "cp -r $SRC/tree $TMP; rsync -a $TMP/tree .; rsync $SRC/data f",
                &["tree/one", "tree/sub/two", "tree/sub/three", "f"],
            ),
            (
                "cat $SRC/more >> $TMP/tree/one; rsync -a $TMP/tree .; rsync -a $TMP/tree .",
                &["tree/one"],
            ),
            (
                "cat $SRC/more >> $TMP/tree/sub/two; rm $TMP/tree/one; rsync -a --delete --delay-updates $TMP/tree .",
                &["tree/sub/two"],
            ),
            (
                "cat $SRC/more >> $TMP/tree/sub/three; rsync -ab --suffix=.old $TMP/tree .",
                &["tree/sub/three", "tree/sub/three.old"],
            ),
        ],
    },
    Program {
        name: "rsync --inplace",
        needs: &["rsync"],
        steps: &[
            ("cp $SRC/data $TMP/f; rsync -t --inplace $TMP/f f", &["f +"]),
            (
                "cat $SRC/more >> $TMP/f; rsync -t --inplace --no-whole-file $TMP/f f",
                &["f +"],
            ),
            (
                "cat $SRC/more >> $TMP/f; rsync -t --append-verify $TMP/f f",
                &["f +"],
            ),
        ],
    },
    Program {
        name: "split",
        needs: &["split", "csplit"],
        steps: &[(
            "split -b 100000 $SRC/data; csplit -s $SRC/text /beta/",
            &["xaa", "xab", "xac", "xx00", "xx01"],
        )],
    },
    Program {
        name: "ln",
        needs: &["ln"],
        steps: &[
            ("cp $SRC/data f", &["f"]),
            ("ln f g", &["g"]),
            ("rm f", &[]),
        ],
    },
];

#[test]
fn programs_that_copy() {
    needs_mounts!();
    run_matrix(COPIERS);
}
