fn main() -> std::process::ExitCode {
    meshbox::cli::run(std::env::args_os())
}
