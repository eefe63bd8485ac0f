//! Programs that pack, unpack, build and download.

use crate::matrix::{Program, run_matrix};
use crate::needs_mounts;

const ARCHIVERS: &[Program] = &[
    Program {
        name: "tar",
        needs: &["tar", "gzip"],
        steps: &[
            (
                "tar -C $SRC -cf $TMP/t.tar tree; tar xf $TMP/t.tar; tar -C $SRC -czf t.tgz tree",
                &["tree/one", "tree/sub/two", "tree/sub/three", "t.tgz *"],
            ),
            (
                "tar xf $TMP/t.tar tree/one; cp $TMP/t.tar t.tar",
                &["tree/one", "t.tar *"],
            ),
            ("tar -C $SRC -rf t.tar text", &["t.tar *"]),
        ],
    },
    Program {
        name: "unzip",
        needs: &["unzip", "zip"],
        steps: &[
            (
                "(cd $SRC; zip -qr $TMP/z.zip tree); unzip -q $TMP/z.zip",
                &["tree/one +", "tree/sub/two +", "tree/sub/three +"],
            ),
            ("unzip -qo $TMP/z.zip tree/one", &["tree/one +"]),
        ],
    },
    Program {
        name: "zip",
        needs: &["unzip", "zip"],
        steps: &[
            ("(cd $SRC; zip -qr \"$AT/z.zip\" tree)", &["z.zip *"]),
            ("zip -qj z.zip $SRC/text; unzip -tqq z.zip", &["z.zip *"]),
        ],
    },
    Program {
        name: "gzip",
        needs: &["gzip"],
        steps: &[
            ("cp $SRC/data f; cp $SRC/text g", &["f", "g"]),
            ("gzip f; gzip -kc g > h.gz", &["f.gz *", "h.gz *"]),
            ("gunzip f.gz; gzip -f g", &["f", "g.gz *"]),
        ],
    },
    Program {
        name: "xz",
        needs: &["xz"],
        steps: &[
            ("cp $SRC/data f; xz -k $SRC/text -c > g.xz", &["f", "g.xz"]),
            ("xz f", &["f.xz"]),
            ("unxz f.xz", &["f"]),
        ],
    },
    Program {
        name: "gcc",
        needs: &["gcc"],
        steps: &[
            (
                "echo 'int main(void) { return 0; }' > $TMP/m.c; gcc -o prog $TMP/m.c; ./prog; gcc -c -o m.o $TMP/m.c",
                &["prog * +", "m.o *"],
            ),
            (
                "echo 'int main(void) { return 7; }' > $TMP/m.c; gcc -g -pipe -o prog $TMP/m.c; ! ./prog",
                &["prog * +"],
            ),
        ],
    },
    Program {
        name: "git",
        needs: &["git"],
        steps: &[
            (
                "git init -q -b main r; cd r; cp $SRC/text a; cp -r $SRC/tree .; git add .; git commit -qm one",
                &["r/a", "r/tree/one", "r/tree/sub/two", "r/tree/sub/three"],
            ),
            (
                "cd r; echo delta >> a; git commit -qam two; git gc -q",
                &["r/a"],
            ),
            (
                "cd r; git checkout -q HEAD~1; cd ..; git clone -q r c",
                &[
                    "r/a",
                    "c/a",
                    "c/tree/one",
                    "c/tree/sub/two",
                    "c/tree/sub/three",
                ],
            ),
            (
                "cd r; git checkout -q main; git stash -q; git mv a b; git commit -qm three",
                &["r/b *"],
            ),
        ],
    },
    Program {
        name: "curl",
        needs: &["curl"],
        steps: &[
            (
                "curl -sSf -o f $URL/data; curl -sSfO $URL/text; curl -sSf --create-dirs -o d/g $URL/more",
                &["f", "text", "d/g"],
            ),
            ("curl -sSf $URL/more > f", &["f"]),
        ],
    },
    Program {
        name: "wget",
        needs: &["wget"],
        steps: &[
            ("wget -q $URL/data; wget -q -O f $URL/text", &["data", "f"]),
            ("wget -q -O f $URL/more", &["f"]),
        ],
    },
    Program {
        name: "sftp",
        needs: &["sftp", SFTP_SERVER],
        steps: &[
            (
                "echo \"put $SRC/data f\" | sftp -q -b - -D /usr/lib/openssh/sftp-server; echo \"put -p $SRC/text g\" | sftp -q -b - -D /usr/lib/openssh/sftp-server",
                &["f", "g"],
            ),
            (
                "echo \"put $SRC/more f\" | sftp -q -b - -D /usr/lib/openssh/sftp-server",
                &["f"],
            ),
            (
                "echo 'rename f h' | sftp -q -b - -D /usr/lib/openssh/sftp-server",
                &["h"],
            ),
        ],
    },
];

const SFTP_SERVER: &str = "/usr/lib/openssh/sftp-server";

#[test]
fn programs_that_pack_build_and_download() {
    needs_mounts!();
    run_matrix(ARCHIVERS);
}
