// The same from C++11: handles in unique_ptr, failures as exceptions.
// SPDX-License-Identifier: MIT
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <dsv2.h>

static void check(dsv2_status status)
{
    if (status != DSV2_OK)
        throw std::runtime_error(dsv2_last_error());
}

static void run(const char *folder)
{
    const std::string prompt = "Story: One day";
    dsv2_context *c;
    dsv2_model *m;
    dsv2_session *s;

    check(dsv2_context_create(nullptr, &c));
    std::unique_ptr<dsv2_context, decltype(&dsv2_context_free)> ctx(c, dsv2_context_free);
    check(dsv2_model_load(c, folder, nullptr, &m));
    std::unique_ptr<dsv2_model, decltype(&dsv2_model_free)> model(m, dsv2_model_free);
    check(dsv2_session_create(m, nullptr, &s));
    std::unique_ptr<dsv2_session, decltype(&dsv2_session_free)> session(s, dsv2_session_free);

    std::vector<int32_t> ids(prompt.size() + 1);
    size_t n;
    check(dsv2_tokenize(m, prompt.data(), prompt.size(), DSV2_TOKENIZE_BOS, ids.data(), ids.size(), &n));
    check(dsv2_session_prefill(s, ids.data(), n));

    dsv2_sample_params sp;
    dsv2_sample_params_init(&sp, sizeof sp, nullptr);
    sp.temperature = 0;
    for (int i = 0; i < 16; i++) {
        int32_t token;
        char text[256];
        check(dsv2_sample(s, &sp, &token, nullptr));
        if (dsv2_token_is_eos(m, token))
            break;
        check(dsv2_detokenize(m, &token, 1, 0, text, sizeof text, &n));
        std::cout.write(text, static_cast<std::streamsize>(n));
        check(dsv2_session_decode(s, token));
    }
    std::cout << '\n';
}

int main(int argc, char **argv)
{
    try {
        if (argc != 2)
            throw std::runtime_error("usage: cpp-shared FOLDER");
        run(argv[1]);
        return 0;
    } catch (const std::exception &e) {
        std::cerr << e.what() << '\n';
        return 1;
    }
}
