// trion.hpp without exceptions: what calls return.
#include "check.hpp"
#include "objects.hpp"

#include <trion.hpp>

#include <cstring>
#include <functional>

static_assert(TRION_EXCEPTIONS == 0);

int main(int argc, char** argv) {
    CHECK(argc == 2);
    const trion::result<trion::model> none = trion::model::open("nowhere");
    CHECK(!none && !none.has_value() && none.status() == TRION_IO && none.error().status() == TRION_IO);
    CHECK(std::strstr(none.message(), "nowhere") != nullptr);

    std::size_t regions = 0;
    auto jobs = [&](std::size_t count, trion::task task) {
        ++regions;
        for (std::size_t index = 0; index < count; ++index) task(index);
    };
    trion::result<trion::runtime> runtime = trion::runtime::make(trion::runtime_options().jobs(3, std::ref(jobs)));
    CHECK(runtime.has_value());
    const trion::result<trion::model> opened = trion::model::open(argv[1], *runtime);
    CHECK(opened && opened->info()->has_tokenizer == 1);
    const trion::model model = opened.value();

    trion::session_options options;
    options.context = 64;
    trion::result<trion::session> made = trion::session::make(model, options);
    CHECK(made);
    trion::session session = std::move(made).value();
    CHECK(session.advance(1).status() == TRION_NO_TOKENS);
    CHECK(std::strcmp(session.advance(1).message(), trion_status_string(TRION_NO_TOKENS)) == 0);
    const trion::result<void> pushed = session.push({4'000'000});
    CHECK(!pushed && pushed.status() == TRION_TOKEN_OUT_OF_RANGE);
    CHECK(std::strstr(pushed.message(), "4000000") != nullptr);
    CHECK(session.push_text("Once upon a time"));
    trion::session fork = *session.fork();

    std::string written;
    CHECK(trion::generate(session, 6, [&](std::string_view piece) { written += piece; }).value() ==
          TRION_STOP_MAX_TOKENS);
    CHECK(!written.empty() && regions > 0);
    std::size_t count = 0;
    const trion::result<trion::event> last = fork.run(20, [&](const trion::event& event) {
        count += event.kind == TRION_EVENT_TOKEN;
        return count < 6;
    });
    CHECK(last->reason == TRION_REASON_CANCELLED && count == 6);
    const trion::result<trion::span<const trion::token>> ours = session.tokens(), theirs = fork.tokens();
    CHECK(ours->size() == theirs->size());
    for (std::size_t index = 0; index < ours->size(); ++index) CHECK((*ours)[index] == (*theirs)[index]);

    const trion::result<std::vector<trion::event>> both = trion::advance({&session, &fork}, trion::unlimited);
    CHECK(both && both->size() == 2 && (*both)[0].token == (*both)[1].token);
    CHECK(trion::compute({&session, &session}, 1).status() == TRION_INVALID_ARGUMENT);

    const trion::result<trion::constraint> broken = trion::constraint::regex(model, "(");
    CHECK(!broken && broken.status() == TRION_CONSTRAINT && std::strlen(broken.message()) > 10);
    CHECK(fork.set_constraint(trion::constraint()).status() == TRION_INVALID_ARGUMENT);
    const trion::result<trion::constraint> letters = trion::constraint::regex(model, "[xyz]{6}");
    CHECK(letters && fork.set_constraint(*letters));
    CHECK(fork.compute(trion::unlimited)->kind == TRION_EVENT_READY);
    written.clear();
    CHECK(*trion::generate(fork, 20, [&](std::string_view piece) { written += piece; }) == TRION_STOP_CONSTRAINT);
    CHECK(written.size() == 6 && written.find_first_not_of("xyz") == std::string::npos);
    CHECK(fork.clear_constraint());

    const trion::result<std::vector<std::byte>> saved = session.save();
    CHECK(saved && fork.load(*saved));
    CHECK(tokens_elsewhere(argv[1], "two files") == model.encode("two files")->size());
    std::puts("everything held");
    return 0;
}
