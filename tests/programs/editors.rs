//! Programs that change a file in place, or seem to.

use crate::matrix::{Program, run_matrix};
use crate::needs_mounts;

const EDITORS: &[Program] = &[
    Program {
        name: "sed -i",
        needs: &["sed"],
        steps: &[
            ("cp $SRC/text f; cp $SRC/text g", &["f", "g"]),
            (
                "sed -i s/beta/BETA/ f; sed -i.bak s/beta/BETA/ g",
                &["f", "g", "g.bak"],
            ),
            ("sed -i s/gamma/GAMMA/ f g", &["f", "g"]),
        ],
    },
    Program {
        name: "perl -i",
        needs: &["perl"],
        steps: &[
            ("cp $SRC/text f; cp $SRC/text g", &["f", "g"]),
            (
                "perl -pi -e s/beta/BETA/ f; perl -pi.orig -e s/beta/BETA/ g",
                &["f", "g", "g.orig"],
            ),
        ],
    },
    Program {
        name: "python tempfile and rename",
        needs: &["python3"],
        steps: &[(PYTHON_REPLACE, &["f"]), (PYTHON_REPLACE, &["f"])],
    },
    Program {
        name: "patch",
        needs: &["patch", "diff"],
        steps: &[
            ("cp $SRC/text f; cp $SRC/text g", &["f", "g"]),
            (
                "sed s/beta/BETA/ f > $TMP/new; diff -u f $TMP/new > $TMP/p || true; patch -s f < $TMP/p; patch -sb g < $TMP/p",
                &["f", "g", "g.orig"],
            ),
        ],
    },
    Program {
        name: "sort -o",
        needs: &["sort"],
        steps: &[("sort -r -o f $SRC/text", &["f"]), ("sort -o f f", &["f"])],
    },
    Program {
        name: "ex",
        needs: &["ex"],
        steps: &[
            ("cp $SRC/text f", &["f"]),
            ("ex -s -c '%s/beta/BETA/' -c x f", &["f"]),
        ],
    },
    Program {
        name: "vim",
        needs: &["vim", "python3"],
        steps: &[
            // Below /tmp vim makes no backups by itself; elsewhere it does.
            (
                "cp $SRC/text f; python3 $KEYS '[New]' 'ifresh\\x1b:wq\\r' vim -c 'set backupskip=' new",
                &["f", "new"],
            ),
            (
                "python3 $KEYS gamma 'Gotyped\\x1b:wq\\r' vim -c 'set backupskip=' f",
                &["f"],
            ),
            (
                "python3 $KEYS typed 'Gokept\\x1b:w\\r:q\\r' vim -c 'set backupskip= backup' f",
                &["f"],
            ),
            (
                "python3 $KEYS kept 'Gothrown away\\x1b:q!\\r' vim -c 'set backupskip=' f",
                &[],
            ),
        ],
    },
    Program {
        name: "nano",
        needs: &["nano", "python3"],
        steps: &[
            (
                "cp $SRC/text f; python3 $KEYS 'New Buffer' 'fresh\\r\\x0fnew\\r\\x18' nano -B",
                &["f", "new"],
            ),
            (
                "python3 $KEYS gamma 'typed\\r\\x0f\\r\\x18' nano -B f",
                &["f"],
            ),
            (
                "python3 $KEYS gamma 'again\\r\\x0f\\r\\x18' nano --locking f",
                &["f"],
            ),
        ],
    },
    Program {
        name: "emacs",
        needs: &["emacs"],
        steps: &[
            (
                "cp $SRC/text f; emacs -Q --batch --eval '(progn (find-file \"new\") (insert \"fresh\\n\") (save-buffer))'",
                &["f", "new"],
            ),
            (
                "emacs -Q --batch --eval '(progn (find-file \"f\") (goto-char (point-max)) (insert \"typed\\n\") (save-buffer))'",
                &["f"],
            ),
            (
                "emacs -Q --batch --eval '(progn (setq create-lockfiles nil) (find-file \"f\") (goto-char (point-max)) (insert \"more\\n\") (save-buffer))'",
                &["f"],
            ),
            (
                "emacs -Q --batch --eval '(progn (setq backup-by-copying t version-control t) (find-file \"f\") (insert \"first\\n\") (save-buffer))'",
                &["f"],
            ),
        ],
    },
    Program {
        name: "sqlite3",
        needs: &["sqlite3"],
        steps: &[
            (
                "sqlite3 a.db 'create table t(x); insert into t values(1); insert into t values(2);'",
                &["a.db"],
            ),
            (
                "sqlite3 a.db 'pragma journal_mode=wal; insert into t values(3); insert into t values(4);'",
                &["a.db"],
            ),
            (
                "sqlite3 a.db 'pragma journal_mode=delete; begin; insert into t values(5); commit; vacuum;'",
                &["a.db"],
            ),
            ("sqlite3 a.db 'select count(*) from t'", &[]),
        ],
    },
];

/// The way of most programs that save safely.
const PYTHON_REPLACE: &str = "python3 - $SRC/text <<'END'
import os, sys, tempfile
with tempfile.NamedTemporaryFile('w', dir='.', delete=False) as new:
    new.write(open(sys.argv[1]).read())
    if os.path.exists('f'):
        new.write('again\\n')
    new.flush()
    os.fsync(new.fileno())
os.replace(new.name, 'f')
END";

#[test]
fn programs_that_edit() {
    needs_mounts!();
    run_matrix(EDITORS);
}
